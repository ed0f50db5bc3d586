"""What BayesianModule is made of, beside its Gaussians."""
