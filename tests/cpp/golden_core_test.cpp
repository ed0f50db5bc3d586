// The bits of every function of the core, in float and double, against tests/data/golden_bits.txt: golden.h says how.
#include "core/gaussian.h"
#include "core/normal.h"
#include "cpu/storage.h"
#include "golden.h"
#include "ops/block.h"
#include "points.h"

namespace illia {
namespace base {
namespace {

Lines lines;

void put(const std::string& name, const std::string& value) { lines.push_back("core." + name + " " + value); }
void put(const std::string& name, const Digest& digest) { put(name, digest.text()); }

template <typename acc_t>
std::string of_type(const char* name) {
  return std::string(name) + (sizeof(acc_t) == sizeof(float) ? ".float" : ".double");
}

// function(x, &digest) at all points.
template <typename acc_t, typename function_t>
void put_function(const char* name, const std::vector<acc_t>& at, function_t function) {
  Digest digest;
  for (acc_t x : at) function(x, digest);
  put(of_type<acc_t>(name), digest);
}

// function(x, &digest) of 8 numbers each, drawn from ordinary ones and from edges.
template <typename acc_t, typename function_t>
void put_tuples(const char* name, function_t function) {
  using Limits = std::numeric_limits<acc_t>;
  std::vector<acc_t> choice = edges<acc_t>();
  for (acc_t x : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -acc_t{0}}) choice.push_back(x);
  Digest digest;
  for (uint64_t i = 0; i < 8 * 4000; i += 8) {
    acc_t x[8];
    for (int k = 0; k < 8; ++k) {
      const uint64_t drawn = scattered(i + k);
      const int place = static_cast<int>(drawn >> 48) % 1024;
      const acc_t ordinary = acc_t(static_cast<int32_t>(drawn)) * acc_t(0x1p-29);  // [-4, 4)
      x[k] = place < static_cast<int>(choice.size()) ? choice[place] : ordinary;
    }
    function(x, digest);
  }
  put(of_type<acc_t>(name), digest);
}

// And so many in [low, high) that a coefficient's last place, which changes one result in some 1000, is seen.
template <typename acc_t>
std::vector<acc_t> with_many(std::vector<acc_t> points, acc_t low, acc_t high) {
  for (uint64_t i = 0; i < 1 << 17; ++i)
    points.push_back(low + (high - low) * (static_cast<acc_t>(scattered(i) >> 40) * acc_t(0x1p-24)));
  return points;
}

template <typename acc_t>
void put_elementary() {
  using Limits = std::numeric_limits<acc_t>;
  const acc_t infinity = Limits::infinity();
  put_function("exp_nonpositive", with_many<acc_t>(points<acc_t>(-infinity, 0, true), -20, 0),
               [](acc_t x, Digest& digest) { digest.add(exp_nonpositive(x)); });
  put_function("log1p_ratio", with_many<acc_t>(points<acc_t>(0, 1), 0, 1),
               [](acc_t x, Digest& digest) { digest.add(log1p_ratio(x)); });
  put_function("log_normal", with_many<acc_t>(points<acc_t>(Limits::min(), Limits::max()), 0.625, 1.375),
               [](acc_t x, Digest& digest) { digest.add(log_normal(x)); });
  put_function("sin_cos_turns", with_many<acc_t>(points<acc_t>(-0x1p20, 0x1p20), 0, 1), [](acc_t x, Digest& digest) {
    acc_t sine, cosine;
    sin_cos_turns(x, &sine, &cosine);
    digest.add(sine).add(cosine);
  });
  put_function("split_mantissa", points<acc_t>(Limits::min(), infinity), [](acc_t x, Digest& digest) {
    typename FloatFormat<acc_t>::int_t exponent;
    digest.add(split_mantissa(x, &exponent)).add(exponent);
  });
  put_function("square_root", points<acc_t>(0x1p-60, 0x1p60),
               [](acc_t x, Digest& digest) { digest.add(square_root(x)); });
  put_function("reciprocal", points<acc_t>(0x1p-124, infinity, true),
               [](acc_t x, Digest& digest) { digest.add(reciprocal(x)); });
  put_tuples<acc_t>("at_least", [](const acc_t* x, Digest& digest) { digest.add(at_least(x[0], x[1])); });
}

template <typename acc_t>
void put_softplus() {
  const acc_t infinity = std::numeric_limits<acc_t>::infinity();
  const std::vector<acc_t> rhos = points<acc_t>(-infinity, infinity, true);
  put_function("softplus", rhos, [](acc_t rho, Digest& digest) {
    const Softplus<acc_t> s = softplus(rho);
    digest.add(s.sigma).add(s.factor).add(s.t).add(s.linear);
  });
  put_function("h_and_sigmoid", rhos, [](acc_t rho, Digest& digest) {
    const Softplus<acc_t> s = softplus(rho);
    const acc_t h = log_sigma_derivative(s);
    digest.add(h).add(sigmoid(rho, s.sigma, h));
  });
  put_function("log_sigma", rhos,
               [](acc_t rho, Digest& digest) { digest.add(linear_log_sigma(rho)).add(log_sigma(rho)); });
}

template <typename acc_t>
void put_priors() {
  const acc_t infinity = std::numeric_limits<acc_t>::infinity();
  put_tuples<double>(of_type<acc_t>("prior").c_str(), [](const double* x, Digest& digest) {
    const auto prior = Prior<acc_t>::make(x[0], x[1]);
    digest.add(prior.mu).add(prior.inverse_std).add(prior.exact_inverse_std).add(prior.log_std).add(prior.scale(x[2]));
  });
  put_tuples<acc_t>("element_prior", [](const acc_t* x, Digest& digest) {
    const auto prior = ElementPrior<acc_t>::make(x[0], x[1]);
    digest.add(prior.mu).add(prior.inverse_std).add(prior.scale(x[2])).add(prior_score(x[3], prior));
  });
  put_function("log_std_parts", points<acc_t>(-infinity, infinity, true), [](acc_t std, Digest& digest) {
    const LogStd<acc_t> parts = log_std_parts(std);
    digest.add(parts.factor).add(parts.linear);
  });
}

template <typename acc_t>
void put_gaussian() {
  const auto add = [](const GaussianGrads<acc_t>& grads, Digest& digest) {
    digest.add(grads.x).add(grads.mu).add(grads.rho);
  };
  put_tuples<acc_t>("gaussian_sample", [](const acc_t* x, Digest& digest) {
    const ElementPrior<acc_t> prior{x[2], x[4]};
    digest.add(gaussian_sample(x[0], x[1], x[2])).add(gaussian_sample_grad(x[0], x[1], prior, x[3]));
  });
  put_tuples<acc_t>("posterior_score",
                    [](const acc_t* x, Digest& digest) { digest.add(posterior_score(x[0], x[1], x[2])); });
  put_tuples<acc_t>("held_fixed_grads", [](const acc_t* x, Digest& digest) {
    const HeldFixedGrads<acc_t> grads = held_fixed_grads(x[0], x[1], x[2]);
    digest.add(grads.mu).add(grads.h_scale);
  });
  put_tuples<acc_t>("element_prior_grads", [](const acc_t* x, Digest& digest) {
    const ElementPriorGrads<acc_t> grads = element_prior_grads(x[0], x[1], x[2]);
    digest.add(grads.mu).add(grads.std);
  });
  put_tuples<acc_t>("families", [](const acc_t* x, Digest& digest) {
    for (Family family : {Family::kNormal, Family::kFlat, Family::kLaplace, Family::kScaleMixture}) {
      const AnyFamily<acc_t> any{family, {x[2], std::fabs(x[3])}};
      digest.add(any.add_twice(x[0], x[1])).add(any.slope(x[0]));
    }
  });
  put_tuples<acc_t>("gaussian_log_prob_grads", [&](const acc_t* x, Digest& digest) {
    add(gaussian_log_prob_grads(x[0], x[1], x[2], x[3], ElementPrior<acc_t>{x[4], x[6]}, x[5]), digest);
  });
  put_tuples<acc_t>("gaussian_kl_divergence_grads", [&](const acc_t* x, Digest& digest) {
    add(gaussian_kl_divergence_grads(x[0], x[1], x[2], x[3], x[4], ElementPrior<acc_t>{x[5], x[7]}, x[6]), digest);
  });
}

template <typename lane_t>
void put_philox(const char* name) {
  Digest digest;
  for (uint64_t i = 0; i < 4000; ++i) {
    const uint64_t seed = i % 3 ? scattered(2 * i) : i, counter = i % 5 ? scattered(2 * i + 1) : ~uint64_t{0} - i;
    const PhiloxBlock<lane_t> block = philox4x32<lane_t>(seed, counter);
    const PhiloxBlock<uint64_t> lane = philox4x32_lane<uint64_t>(seed, counter);
    for (int w = 0; w < 4; ++w) digest.add(block.word(w)).add(lane.word(w));
  }
  put(name, digest);
}

template <typename acc_t>
void put_normals() {
  Digest digest, uniforms;
  for (uint64_t counter = 0; counter < 8000; ++counter) {
    acc_t eps[kNormalsPerBlock<acc_t>];
    block_normals(philox4x32<uint64_t>(counter / 1000, counter), eps);
    for (acc_t normal : eps) digest.add(normal);
    const uint32_t high = scattered(counter), low = counter % 7 ? high * 3 : 0 - static_cast<uint32_t>(counter);
    if constexpr (sizeof(acc_t) == sizeof(float)) uniforms.add(uniform(low));
    if constexpr (sizeof(acc_t) == sizeof(double)) uniforms.add(uniform(high, low));
  }
  put(of_type<acc_t>("normals"), digest);
  put(of_type<acc_t>("uniform"), uniforms);
  acc_t eps[kNormalsPerBlock<acc_t>];
  block_normals(philox4x32<uint64_t>(42, 0), eps);
  std::string first;  // for people: as many digits as tell a number from all others of its type
  char text[32];
  for (acc_t normal : eps) {
    std::snprintf(text, sizeof(text), "%.*g", std::numeric_limits<acc_t>::max_digits10, static_cast<double>(normal));
    first += (first.empty() ? "" : ",") + std::string(text);
  }
  put(of_type<acc_t>("first_normals_of_seed_42"), first);
}

void put_float_only() {
  put_tuples<float>("from_estimates", [](const float* x, Digest& digest) {
    digest.add(square_root_from_estimate(x[0], x[1])).add(reciprocal_from_estimate(x[2], x[3]));
  });
  Digest halves, bfloats;
  for (uint32_t i = 0; i < 0x10000; ++i) {
    halves.add(half_to_float(static_cast<uint16_t>(i)));
    bfloats.add(bfloat16_to_float(static_cast<uint16_t>(i)));
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (float x : points<float>(-infinity, infinity)) {
    halves.add(float_to_half(x));
    bfloats.add(float_to_bfloat16(x));
  }
  put("half", halves);
  put("bfloat16", bfloats);
}

void put_blocks() {
  Digest digest;
  for (uint64_t i = 0; i < 500; ++i) {
    std::vector<int64_t> sizes, full_sizes, origin;
    for (uint64_t dim = 0; dim < 1 + i % 4; ++dim) {
      const uint64_t drawn = scattered(5 * i + dim);
      full_sizes.push_back(1 + drawn % 5);
      origin.push_back((drawn >> 16) % full_sizes.back());
      sizes.push_back(1 + (drawn >> 32) % (full_sizes.back() - origin.back()));
    }
    const std::optional<Block> block = make_block(sizes, full_sizes, origin);
    int64_t numel = 1;
    for (int64_t size : sizes) numel *= size;
    for (int64_t n = 0; n < numel; ++n) digest.add(block->place(n));
  }
  put("block", digest);
}

template <typename acc_t>
void put_all() {
  put_elementary<acc_t>();
  put_softplus<acc_t>();
  put_priors<acc_t>();
  put_gaussian<acc_t>();
  put_normals<acc_t>();
}

}  // namespace
}  // namespace base
}  // namespace illia

int main(int argc, char** argv) {
  using namespace illia::base;
  const PhiloxBlock<uint64_t> first = philox4x32<uint64_t>(42, 0);
  char words[40];
  std::snprintf(words, sizeof(words), "%08x,%08x,%08x,%08x", first.word(0), first.word(1), first.word(2),
                first.word(3));
  put("first_words_of_seed_42", words);
  put_philox<uint32_t>("philox.narrow");
  put_philox<uint64_t>("philox.wide");
  put_all<float>();
  put_all<double>();
  put_function("log_any", points<double>(-HUGE_VAL, HUGE_VAL, true),
               [](double x, illia::Digest& digest) { digest.add(log_any(x)); });
  put_float_only();
  put_blocks();
  return illia::print_or_compare(argc, argv, "core.", lines);
}
