// The density of a prior as a function of z = (x - mu_prior) / std_prior: a choice made at run time. No code here.
#pragma once

namespace illia {

enum class Family { kNormal, kFlat, kLaplace, kScaleMixture };

// -log p(x) = log std_prior + energy(z) + constant, without the -log(2 pi) / 2 that log q lacks too. core/gaussian.h
// has the energies.
struct PriorFamily {
  Family family = Family::kNormal;
  double constant = 0;
  double log_odds = 0, decay = 0;  // of a scale mixture: log_odds - decay z^2 are those of its narrow component at z
};

}  // namespace illia
