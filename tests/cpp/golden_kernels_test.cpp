// The bits that every CPU kernel writes, for all storage types, tails and features, against tests/data/golden_bits.txt:
// golden.h says how. Every instruction set that this CPU has must write them.
#include <cmath>
#include <limits>

#include "arrays.h"
#include "golden.h"
#include "points.h"

namespace illia {
namespace {

using base::scattered;

void add_to(Digest& digest, Array& array) {
  for (int64_t i = 0; i < array.numel(); ++i) {
    if (array.storage == Storage::kDouble)
      digest.add(array.value(i));
    else
      digest.add(static_cast<float>(array.value(i)));
  }
}

struct Feature {
  Block block{};
  bool each_prior = false, sum_prior_grads = false, each_prior_grad = false, stick_the_landing = false;
  bool tails = false;  // elements far out, infinite and NaN
  PriorFamily family{};
  bool antithetic = false;
};

struct Case {
  Types types;
  int64_t numel, num_samples;
  Feature feature;
};

// Multiples of 1/64 in [low, low + 16), which every type but bfloat16 holds.
double dyadic(uint64_t seed, int64_t i, double low) {
  return low + static_cast<double>(scattered(seed << 32 | static_cast<uint64_t>(i)) % 1024) / 64;
}

double tail(uint64_t seed, int64_t i, double otherwise) {
  const double kTails[] = {-16.7,  17.0,  64.5, -88.0, -103.5,   -104.5,    120.0, -708.5,
                           -745.5, 800.0, 1e30, -1e30, HUGE_VAL, -HUGE_VAL, NAN,   0x1p-140};
  const uint64_t drawn = scattered(~seed << 32 | static_cast<uint64_t>(i));
  return drawn % 31 ? otherwise : kTails[drawn >> 60];
}

struct Digests {
  Digest standard_normal, sample, sample_backward, log_prob, log_prob_backward, kl_divergence, kl_divergence_backward;
};

void run(const Kernels& kernels, const Case& c, Digests& digests) {
  const bool in_double = c.types.parameters == Storage::kDouble;
  const Storage acc = in_double ? Storage::kDouble : Storage::kFloat;
  const KernelTable& table = in_double ? kernels.in_double : kernels.in_float;
  const Feature& feature = c.feature;
  const int64_t numel = c.numel, samples = c.num_samples, total = numel * samples, chunks = count_chunks(numel);
  const auto values = [&](uint64_t seed, double low, double scale) {
    return [=](int64_t i) {
      const double ordinary = dyadic(seed, i, low) * scale;
      return feature.tails ? tail(seed, i, ordinary) : ordinary;
    };
  };

  Array mu(c.types.parameters, numel), rho(c.types.parameters, numel), given_x(c.types.sample, total),
      grad_x(c.types.sample, total);
  mu.fill(values(1, -8, 0x1p-3)), rho.fill(values(2, -12, 1));
  given_x.fill(values(3, -8, 0x1p-2)), grad_x.fill(values(4, -8, 0x1p-3));
  Array mu_priors(acc, numel), std_priors(acc, numel);
  mu_priors.fill(values(5, -8, 0x1p-3)), std_priors.fill(values(6, 0x1p-6, 0x1p-4));
  General general;
  general.block = feature.block, general.family = feature.family, general.antithetic = feature.antithetic;
  PriorScalars prior{{nullptr, Storage::kDouble, 0.25}, {nullptr, Storage::kDouble, 0.7}};
  if (feature.each_prior) {
    prior = {};
    general.mu_prior = mu_priors.data(), general.std_prior = std_priors.data();
  }
  std::vector<Key> keys;
  Array grads(acc, samples), grad_kl(acc, 1);
  for (int64_t s = 0; s < samples; ++s)
    keys.push_back({scattered(s), ~uint64_t{0} - static_cast<uint64_t>(3 * s)});  // the counters wrap around
  grads.fill([](int64_t s) { return dyadic(7, s, -8) / 8; });
  grad_kl.fill([](int64_t) { return 0.75; });

  // What all arguments have.
  const auto start = [&](auto args) {
    args.mu = mu.data(), args.rho = rho.data(), args.numel = numel, args.prior = prior;
    return args;
  };
  const auto call = [&](const auto& args, const General& general) {
    table.get<std::decay_t<decltype(args)>>()(args, general, c.types, 0, chunks);
  };
  const auto add_all = [](const std::vector<double>& sums, Digest& digest) {
    for (double sum : sums) digest.add(sum);
  };
  // backward(grad_mu, grad_rho, general)
  const auto with_prior_grads = [&](Digest& digest, bool asked, auto backward) {
    Array each_mu(acc, numel), each_std(acc, numel), grad_mu(c.types.parameters, numel),
        grad_rho(c.types.parameters, numel);
    for (Array* each : {&each_mu, &each_std}) each->fill([](int64_t) { return 0; });  // where it is not asked for
    std::vector<double> sums(2 * chunks);
    double not_read;  // a kernel leaves its sums in the partials
    General with_grads = general;
    with_grads.stick_the_landing = feature.stick_the_landing;
    if (asked && feature.each_prior_grad)
      with_grads.mu_prior_grad.each = each_mu.data(), with_grads.std_prior_grad.each = each_std.data();
    if (asked && feature.sum_prior_grads) {
      with_grads.mu_prior_grad.sum = &not_read, with_grads.std_prior_grad.sum = &not_read;
      with_grads.prior_partials = sums.data();
    }
    backward(grad_mu.data(), grad_rho.data(), with_grads);
    for (Array* result : {&grad_mu, &grad_rho, &each_mu, &each_std}) add_to(digest, *result);
    add_all(sums, digest);
  };

  Array eps(c.types.sample, total), x(c.types.sample, total), grad_given_x(c.types.sample, total);
  std::vector<double> sums(samples * chunks), kl(chunks);
  StandardNormalArgs normal{};
  normal.keys = keys.data(), normal.num_samples = samples, normal.numel = numel, normal.eps = eps.data();
  call(normal, general);
  add_to(digests.standard_normal, eps);

  SampleArgs sample = start(SampleArgs{});
  sample.keys = keys.data(), sample.num_samples = samples, sample.x = x.data();
  sample.log_prob = {nullptr, sums.data(), chunks};
  call(sample, general);
  add_to(digests.sample, x), add_all(sums, digests.sample);
  sample.log_prob = {};
  call(sample, general);
  add_to(digests.sample, x);

  for (int given : {1, 2, 3}) {
    const bool given_grads = given & 2;
    with_prior_grads(digests.sample_backward, given_grads, [&](void* grad_mu, void* grad_rho, const General& asked) {
      SampleBackwardArgs args = start(SampleBackwardArgs{});
      args.grad_x = given & 1 ? grad_x.data() : nullptr, args.grad_log_prob = given_grads ? grads.data() : nullptr;
      args.keys = keys.data(), args.num_samples = samples, args.grad_mu = grad_mu, args.grad_rho = grad_rho;
      call(args, asked);
    });
  }

  LogProbArgs log_prob = start(LogProbArgs{});
  log_prob.x = given_x.data(), log_prob.num_samples = samples, log_prob.log_prob = {nullptr, sums.data(), chunks};
  call(log_prob, general);
  add_all(sums, digests.log_prob);
  with_prior_grads(digests.log_prob_backward, true, [&](void* grad_mu, void* grad_rho, const General& asked) {
    LogProbBackwardArgs args = start(LogProbBackwardArgs{});
    args.grad_log_prob = grads.data(), args.x = given_x.data(), args.num_samples = samples;
    args.grad_x = grad_given_x.data(), args.grad_mu = grad_mu, args.grad_rho = grad_rho;
    call(args, asked);
  });
  add_to(digests.log_prob_backward, grad_given_x);

  KlDivergenceArgs kl_divergence = start(KlDivergenceArgs{});
  kl_divergence.kl_divergence = {nullptr, kl.data(), chunks};
  call(kl_divergence, general);
  add_all(kl, digests.kl_divergence);
  with_prior_grads(digests.kl_divergence_backward, true, [&](void* grad_mu, void* grad_rho, const General& asked) {
    KlDivergenceBackwardArgs args = start(KlDivergenceBackwardArgs{});
    args.grad = grad_kl.data(), args.grad_mu = grad_mu, args.grad_rho = grad_rho;
    call(args, asked);
  });
}

Digests digest_of(const Kernels& kernels, Types types, const std::vector<Feature>& features) {
  Digests digests;
  for (const Feature& feature : features)
    for (const auto& [numel, num_samples] :
         {std::pair<int64_t, int64_t>{1, 1}, {31, 2}, {257, 3}, {1024, 1}, {2083, 2}})
      run(kernels, {types, numel, num_samples, feature}, digests);
  return digests;
}

void put(const Kernels& kernels, Types types, const std::string& of_types, Lines& lines) {
  // a row off the Philox blocks and beyond 2^32 of them; short rows; rows of one element
  const Block row{(int64_t{1} << 35) + 6}, rows{3, 7, 2, {1000, 3}, {97, 10}}, elements{1, 1, 1, {100000}, {5}};
  const Digests digests = digest_of(kernels, types,
                                    {{},
                                     {{}, false, false, false, false, true},
                                     {row, false, true},
                                     {rows, true, true, true, true},
                                     {elements, false, false, true, true, true},
                                     {{}, true, true, true, true, true}});
  const PriorFamily flat{Family::kFlat, -0.5}, laplace{Family::kLaplace, 0.25},
      mixture{Family::kScaleMixture, 0.75, 3, 40};
  const Digests families = digest_of(kernels, types,
                                     {{{}, false, false, false, false, false, flat, true},
                                      {row, false, true, false, true, false, laplace, true},
                                      {rows, true, false, true, false, true, laplace},
                                      {{}, false, true, false, true, true, mixture},
                                      {elements, true, true, true, false, false, mixture, true}});
  const auto put_line = [&](const char* name, const Digest& digest) {
    lines.push_back(std::string("kernels.") + name + "." + of_types + " " + digest.text());
  };
  put_line("standard_normal", digests.standard_normal);
  put_line("sample", digests.sample);
  put_line("sample_backward", digests.sample_backward);
  put_line("log_prob", digests.log_prob);
  put_line("log_prob_backward", digests.log_prob_backward);
  put_line("kl_divergence", digests.kl_divergence);
  put_line("kl_divergence_backward", digests.kl_divergence_backward);
  put_line("families.sample", families.sample);
  put_line("families.sample_backward", families.sample_backward);
  put_line("families.log_prob", families.log_prob);
  put_line("families.log_prob_backward", families.log_prob_backward);
}

Lines all_lines(const Kernels& kernels) {
  Lines lines;
  for (const auto& [name, types] : kTypes) put(kernels, types, name, lines);
  return lines;
}

}  // namespace
}  // namespace illia

// Usage: golden_kernels_test [golden_bits.txt [capability...]]. Without names: those that the CPU is said to have.
int main(int argc, char** argv) {
  int failures = 0, checked = 0;
  const auto check = [&](const char* capability, const illia::Kernels& kernels, bool supported) {
    bool asked = argc <= 2 && supported;
    for (int i = 2; i < argc; ++i) asked |= std::strcmp(argv[i], capability) == 0;
    if (!asked) return;
    ++checked;
    std::fprintf(stderr, "%s\n", capability);
    failures += illia::print_or_compare(argc, argv, "kernels.", illia::all_lines(kernels));
  };
  check("base", illia::base::kKernels, true);
#if defined(__x86_64__)
  const bool has_avx2 = argc > 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  check("avx2", illia::avx2::kKernels, has_avx2);
  check("avx512", illia::avx512::kKernels, has_avx512);
#endif
  return failures > 0 || checked < argc - 2;
}
