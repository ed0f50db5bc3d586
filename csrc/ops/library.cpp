// Every op of torch.ops.illia_ext. The schemas are frozen: scripted and exported programs store them.
//
// A key is [2] or [num_samples, 2] words (seed, offset). A prior is 0-dim on the CPU or, beside mu, one element or a
// shape that broadcasts to mu's. With full_size, mu is the block of a larger tensor that starts at index origin. An
// output that was not asked for is an empty tensor.
//
// A foreach op draws its tensors as one stream: each begins at the first Philox block that those before it left unused,
// which the key's offset of a single op would say. Its lists of priors hold one for all tensors, or one for each.
//
// A prior's family is None, a Gaussian; "flat", which leaves the prior out; "laplace"; or "scale_mixture", with the
// parameters [weight of the component whose standard deviation is std_prior, ratio of the other one's to it]. A foreach
// op takes a list of names, with "normal" for a Gaussian: one for all tensors, or one for each, and all parameters in a
// row.
//
// With antithetic there is an even number of keys: each second sample is drawn by the key before its own, with -eps.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(illia_ext, m) {
  m.def(
      "standard_normal(Tensor key, SymInt[] size, *, ScalarType dtype, SymInt[]? full_size=None, "
      "SymInt[]? origin=None) -> Tensor");
  m.def(
      "gaussian_sample(Tensor mu, Tensor rho, Tensor key, *, ScalarType? dtype=None, SymInt[]? full_size=None, "
      "SymInt[]? origin=None, bool antithetic=False) -> Tensor");
  m.def(
      "gaussian_sample_backward(Tensor grad_x, Tensor rho, Tensor key, *, SymInt[]? full_size=None, "
      "SymInt[]? origin=None, bool antithetic=False) -> Tensor");
  m.def(
      "gaussian_log_prob(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, *, "
      "str? family=None, float[]? family_parameters=None) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad_log_prob, Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, "
      "Tensor std_prior, bool[5] output_mask, *, str? family=None, float[]? family_parameters=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gaussian_sample_and_log_prob(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, Tensor key, *, "
      "ScalarType? dtype=None, bool stick_the_landing=False, SymInt[]? full_size=None, SymInt[]? origin=None, "
      "str? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor, Tensor)");
  m.def(
      "gaussian_sample_and_log_prob_backward(Tensor? grad_x, Tensor? grad_log_prob, Tensor mu, Tensor rho, "
      "Tensor mu_prior, Tensor std_prior, Tensor key, *, bool stick_the_landing=False, SymInt[]? full_size=None, "
      "SymInt[]? origin=None, bool prior_grads=False, str? family=None, float[]? family_parameters=None, "
      "bool antithetic=False) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gaussian_kl_divergence(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) -> Tensor");
  m.def(
      "gaussian_kl_divergence_backward(Tensor grad, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, "
      "bool prior_grads=False) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "foreach_gaussian_sample_and_log_prob(Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior, "
      "Tensor key, *, ScalarType? dtype=None, bool stick_the_landing=False, str[]? family=None, "
      "float[]? family_parameters=None, bool antithetic=False) -> (Tensor[], Tensor)");
  m.def(
      "foreach_gaussian_sample_and_log_prob_backward(Tensor?[] grad_x, Tensor? grad_log_prob, Tensor[] mu, "
      "Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior, Tensor key, *, bool stick_the_landing=False, "
      "str[]? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor[], Tensor[])");
  m.def("foreach_gaussian_kl_divergence(Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior) -> Tensor");
  m.def(
      "foreach_gaussian_kl_divergence_backward(Tensor grad, Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, "
      "Tensor[] std_prior) -> (Tensor[], Tensor[])");
}
