// The CUDA kernels, run on the CPU by cuda_on_host.h, against the CPU kernels: samples, noise and gradients have the
// same bits, sums agree, and nothing is written outside. Prints each check that failed, and then returns 1.
#include "cuda_on_host.h"

#include <cmath>

#include "arrays.h"
#include "cuda/kernels.h"

namespace illia {
namespace {

struct Case {
  const char* type_names;
  Types types;
  int64_t numel, num_samples;
  int shift;  // elements off the alignment
};

// How a gradient to a prior is asked for.
enum class Ask { kNothing, kEach, kSum };

// What few calls ask for.
struct Feature {
  const char* name;
  Block block{};
  bool each_prior = false;
  Ask grad_mu_prior = Ask::kNothing, grad_std_prior = Ask::kNothing;
  bool stick_the_landing = false;
  PriorFamily family{};
  bool antithetic = false;
};

// The sum of a sample by the CPU's partial sums, and the sum of their absolute values.
double sum(const std::vector<double>& partials, int64_t sample, int64_t num_chunks, double* absolute) {
  double total = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    total += partials[sample * num_chunks + chunk];
    *absolute += std::fabs(partials[sample * num_chunks + chunk]);
  }
  return total;
}

// Sums over tiles, with scratch where there are several.
TileSums sums_into(Array& results, std::vector<double>& scratch, int64_t num_tiles) {
  return {results.data(), num_tiles > 1 ? scratch.data() : nullptr, num_tiles};
}

void test_case(const Case& c, const Feature& feature) {
  const auto name = [&](const char* what) {
    return std::string(what) + ": " + feature.name + ", " + c.type_names + ", numel " + std::to_string(c.numel) +
           ", num_samples " + std::to_string(c.num_samples) + ", shift " + std::to_string(c.shift);
  };
  const bool in_double = c.types.parameters == Storage::kDouble;
  const Storage acc = in_double ? Storage::kDouble : Storage::kFloat;
  const KernelTable& cpu = in_double ? base::kKernels.in_double : base::kKernels.in_float;
  const cuda::Launch launch_on{c.types, nullptr};
  const int64_t total = c.numel * c.num_samples, cpu_chunks = count_chunks(c.numel);
  const auto array = [&](Storage storage, int64_t numel) { return Array(storage, numel, c.shift); };

  Array mu_priors = array(acc, c.numel).fill(5, 0.25, 0.3), std_priors = array(acc, c.numel).fill(6, 0.5, 0.03);
  General general{feature.block};
  general.family = feature.family, general.antithetic = feature.antithetic;
  PriorScalars prior{{nullptr, Storage::kDouble, 0.25}, {nullptr, Storage::kDouble, 0.5}};
  if (feature.each_prior) {
    general.mu_prior = mu_priors.data(), general.std_prior = std_priors.data();
    prior = {};
  }
  // CUDA kernels read std_prior from memory, which may be of another type than mu's
  PriorScalars device_prior = prior;
  const double std_double = prior.std.value;
  const __half std_half = __float2half_rn(static_cast<float>(std_double));
  device_prior.std = in_double ? Scalar{&std_double, Storage::kDouble, NAN} : Scalar{&std_half, Storage::kHalf, NAN};
  const int64_t num_tiles = cuda::count_tiles(launch_on.types, c.numel, general);

  Array mu = array(c.types.parameters, c.numel).fill(1, 0, 0.3),
        rho = array(c.types.parameters, c.numel).fill(2, -3, 3);
  Array grad_x = array(c.types.sample, total).fill(3, 0, 1), grad_log_prob = array(acc, c.num_samples).fill(4, 1, 0.5);
  Array grad_kl = array(acc, 1).fill(7, 1, 0.5);
  std::vector<Key> keys;
  for (int64_t s = 0; s < c.num_samples; ++s)
    keys.push_back({0x9E3779B97F4A7C15u * static_cast<uint64_t>(s + 1), ~uint64_t{0} - static_cast<uint64_t>(2 * s)});
  // What all arguments have.
  const auto start = [&](auto args) {
    args.mu = mu.data(), args.rho = rho.data(), args.numel = c.numel, args.prior = prior;
    return args;
  };
  const auto run_on_cuda = [&](auto args, const General& general) {
    if constexpr (!std::is_same_v<decltype(args), StandardNormalArgs>) args.prior = device_prior;
    expect(launch(launch_on, args, general) == nullptr, name("a launch"));
  };
  const auto run_on_cpu = [&](const auto& args, const General& general) {
    cpu.get<std::decay_t<decltype(args)>>()(args, general, launch_on.types, 0, cpu_chunks);
  };
  // Both sides add up to 32 floats in a row: each is off by at most 32 2^-24 of the absolute sum.
  const double tolerance = in_double ? 1e-14 : 4e-6;

  const auto check_sums = [&](Array& result, const std::vector<double>& partials, int64_t samples, const char* what) {
    for (int64_t s = 0; s < samples; ++s) {
      double absolute = c.numel;
      const double expected = sum(partials, s, cpu_chunks, &absolute);
      expect(std::fabs(result.value(s) - expected) <= tolerance * absolute, name(what));
    }
  };
  const auto check_equal = [&](Array& ours, Array& theirs, const char* what) {
    expect(ours.same_bits(theirs) && ours.sentinels_stand(), name(what));
  };

  // A backward on both: the gradients to mu, rho and the priors agree.
  const auto check_backward = [&](auto ours, const char* what) {
    Array grads[2][2] = {{array(c.types.parameters, c.numel), array(c.types.parameters, c.numel)},
                         {array(c.types.parameters, c.numel), array(c.types.parameters, c.numel)}};
    Array grads_x[] = {array(c.types.sample, total), array(c.types.sample, total)};
    auto theirs = ours;
    ours.grad_mu = grads[0][0].data(), ours.grad_rho = grads[0][1].data();
    theirs.grad_mu = grads[1][0].data(), theirs.grad_rho = grads[1][1].data();
    constexpr bool kToX = std::is_same_v<decltype(ours), LogProbBackwardArgs>;
    if constexpr (kToX) ours.grad_x = grads_x[0].data(), theirs.grad_x = grads_x[1].data();
    const Ask asked[] = {feature.grad_mu_prior, feature.grad_std_prior};
    Array each[] = {array(acc, c.numel), array(acc, c.numel)}, sums[] = {array(acc, 1), array(acc, 1)};
    Array their_each[] = {array(acc, c.numel), array(acc, c.numel)}, first_sums[] = {array(acc, 1), array(acc, 1)};
    General with_grads = general;
    with_grads.stick_the_landing = feature.stick_the_landing;
    General their_general = with_grads;
    their_general.mu_prior_grad.each = asked[0] == Ask::kNothing ? nullptr : their_each[0].data();
    their_general.std_prior_grad.each = asked[1] == Ask::kNothing ? nullptr : their_each[1].data();
    const auto target = [&](int i, Array& sum) {
      return PriorGrad{asked[i] == Ask::kEach ? each[i].data() : nullptr, asked[i] == Ask::kSum ? sum.data() : nullptr};
    };
    const auto run = [&](Array(&results)[2]) {
      with_grads.mu_prior_grad = target(0, results[0]), with_grads.std_prior_grad = target(1, results[1]);
      std::vector<double> scratch(2 * cuda::count_tiles(launch_on.types, c.numel, with_grads));
      with_grads.prior_partials = with_grads.sums_prior_grads() ? scratch.data() : nullptr;
      host_launches = 0;
      run_on_cuda(ours, with_grads);
      expect(host_launches <= 1, name("launches of a backward"));
      if (with_grads.sums_prior_grads()) cuda::launch_prior_grad_sums(launch_on, with_grads, c.numel);
    };
    host_grid_limit = dim3(2, 1);
    run(first_sums);
    host_grid_limit = dim3(0xFFFFFFFF, 0xFFFFFFFF);
    run(sums);
    run_on_cpu(theirs, their_general);
    if (kToX) check_equal(grads_x[0], grads_x[1], what);
    for (int i = 0; i < 2; ++i) {
      check_equal(grads[0][i], grads[1][i], what);
      if (asked[i] == Ask::kEach) check_equal(each[i], their_each[i], what);
      if (asked[i] != Ask::kSum) continue;
      expect(sums[i].same_bits(first_sums[i]) && sums[i].sentinels_stand(), name(what));
      double expected = 0, absolute = 0;
      for (int64_t n = 0; n < c.numel; ++n) {
        expected += their_each[i].value(n);
        absolute += std::fabs(their_each[i].value(n));
      }
      // Equal summands, added in double, but for the result's own rounding.
      expect(std::fabs(sums[i].value(0) - expected) <= (in_double ? 1e-14 : 1.2e-7) * absolute, name(what));
    }
  };

  // 1. Noise.
  if (c.types.parameters == c.types.sample) {
    Array ours = array(c.types.sample, total), theirs = array(c.types.sample, total);
    StandardNormalArgs args{};
    args.keys = keys.data(), args.num_samples = c.num_samples, args.numel = c.numel, args.eps = ours.data();
    run_on_cuda(args, general);
    args.eps = theirs.data();
    run_on_cpu(args, general);
    check_equal(ours, theirs, "standard_normal");
  }
  // 2. A sample and its log_prob, on two grids.
  Array x = array(c.types.sample, total);
  {
    Array other = array(c.types.sample, total), theirs = array(c.types.sample, total);
    Array log_prob(acc, c.num_samples), other_log_prob(acc, c.num_samples);
    std::vector<double> scratch(c.num_samples * num_tiles), partials(c.num_samples * cpu_chunks);
    SampleArgs args = start(SampleArgs{});
    args.keys = keys.data(), args.num_samples = c.num_samples;
    const auto run = [&](Array& samples, Array& sums) {
      args.x = samples.data(), args.log_prob = sums_into(sums, scratch, num_tiles);
      host_launches = 0;
      run_on_cuda(args, general);
      cuda::launch_sums(launch_on, args.log_prob, c.num_samples);
      expect(host_launches <= 2, name("launches of sample_and_log_prob"));
    };
    run(x, log_prob);
    host_grid_limit = dim3(2, 1);
    run(other, other_log_prob);
    host_grid_limit = dim3(0xFFFFFFFF, 0xFFFFFFFF);
    args.x = theirs.data(), args.log_prob = {nullptr, partials.data(), cpu_chunks};
    run_on_cpu(args, general);
    if (cpu_chunks == 1) {  // whose sums are the results
      Array results(acc, c.num_samples);
      args.log_prob = {results.data(), nullptr, 1};
      run_on_cpu(args, general);
      for (int64_t s = 0; s < c.num_samples; ++s)
        expect(results.value(s) == (in_double ? partials[s] : static_cast<float>(partials[s])), name("one chunk"));
    }
    check_equal(x, theirs, "sample");
    check_equal(other, theirs, "sample on a small grid");
    expect(log_prob.same_bits(other_log_prob), name("the sum depends on the grid"));
    check_sums(log_prob, partials, c.num_samples, "log_prob of the sample");
    args.x = other.data(), args.log_prob = {};
    run_on_cuda(args, general);
    check_equal(other, theirs, "sample without its sum");
  }
  // 3. Its backward, with each of its gradients or without.
  for (bool with_x : {true, false})
    for (bool with_log_prob : {true, false}) {
      const bool asks = feature.grad_mu_prior != Ask::kNothing || feature.grad_std_prior != Ask::kNothing;
      if (!with_log_prob && asks) continue;
      SampleBackwardArgs args = start(SampleBackwardArgs{});
      args.grad_x = with_x ? grad_x.data() : nullptr;
      args.grad_log_prob = with_log_prob && c.num_samples ? grad_log_prob.data() : nullptr;  // as torch has it
      args.keys = keys.data(), args.num_samples = c.num_samples;
      check_backward(args, "gradients of the sample");
    }
  // 4. Other sums, each of `rows` rows, and their backwards.
  const auto check_forward = [&](auto args, auto member, int64_t rows, const char* what) {
    Array result(acc, rows);
    std::vector<double> scratch(rows * num_tiles), partials(rows * cpu_chunks);
    args.*member = sums_into(result, scratch, num_tiles);
    run_on_cuda(args, general);
    cuda::launch_sums(launch_on, args.*member, rows);
    args.*member = {nullptr, partials.data(), cpu_chunks};
    run_on_cpu(args, general);
    check_sums(result, partials, rows, what);
  };
  LogProbArgs log_prob = start(LogProbArgs{});
  log_prob.x = x.data(), log_prob.num_samples = c.num_samples;
  check_forward(log_prob, &LogProbArgs::log_prob, c.num_samples, "log_prob");
  LogProbBackwardArgs log_prob_backward = start(LogProbBackwardArgs{});
  log_prob_backward.grad_log_prob = grad_log_prob.data(), log_prob_backward.x = x.data();
  log_prob_backward.num_samples = c.num_samples;
  check_backward(log_prob_backward, "gradients of log_prob");
  const bool is_gaussian = feature.family.family == Family::kNormal;  // else there is no closed form
  if (is_gaussian && c.types.parameters == c.types.sample && c.num_samples == 1) {
    check_forward(start(KlDivergenceArgs{}), &KlDivergenceArgs::kl_divergence, 1, "kl_divergence");
    KlDivergenceBackwardArgs kl_backward = start(KlDivergenceBackwardArgs{});
    kl_backward.grad = grad_kl.data();
    check_backward(kl_backward, "gradients of kl_divergence");
  }
}

}  // namespace
}  // namespace illia

int main() {
  using illia::Ask, illia::Feature;
  // a row off the Philox blocks of either type and beyond 2^32 of them; rows that end within a thread's elements, one
  // outer dimension of two; rows of one element
  const illia::Block row{(int64_t{1} << 35) + 7}, rows{3, 7, 2, {1000, 3}, {97, 10}}, elements{1, 1, 1, {100000}, {5}};
  const illia::PriorFamily flat{illia::Family::kFlat, -0.5}, laplace{illia::Family::kLaplace, 0.25},
      mixture{illia::Family::kScaleMixture, 0.75, 3, 40};
  const Feature features[] = {{"a row", row},
                              {"a row from a Philox block on", {(int64_t{1} << 35) + 8}},
                              {"rows", rows, false, Ask::kSum, Ask::kSum},
                              {"elements", elements, true, Ask::kEach, Ask::kEach, true},
                              {"stick_the_landing", {}, false, Ask::kNothing, Ask::kSum, true},
                              {"prior for each element", {}, true, Ask::kSum, Ask::kEach},
                              {"antithetic", {}, false, Ask::kNothing, Ask::kNothing, false, {}, true},
                              {"flat", {}, false, Ask::kNothing, Ask::kNothing, false, flat},
                              {"laplace", rows, true, Ask::kSum, Ask::kEach, true, laplace, true},
                              {"scale mixture", {}, false, Ask::kSum, Ask::kSum, false, mixture}};
  for (const auto& [name, types] : illia::kTypes) {
    // one tile, less, more, ends within and between vectors, rows off the alignment, none
    for (const auto& [numel, num_samples, shift] : {std::tuple<int64_t, int64_t, int>{1, 1, 0},
                                                    {4096, 1, 0},
                                                    {4100, 1, 0},
                                                    {13337, 1, 0},
                                                    {8192, 3, 0},
                                                    {4097, 3, 0},
                                                    {5000, 2, 1},
                                                    {0, 2, 0},
                                                    {16, 0, 0}})
      illia::test_case({name, types, numel, num_samples, shift}, {"plain"});
    for (const Feature& feature : features)
      for (const auto& [numel, num_samples] :
           {std::pair<int64_t, int64_t>{1, 1}, {1024, 1}, {4099, 1}, {1031, 3}, {0, 2}, {16, 0}})
        illia::test_case({name, types, numel, num_samples, 1}, feature);
  }
  std::fprintf(stderr, "%d checks of the CUDA kernels on the host failed\n", illia::failures);
  return illia::failures > 0;
}
