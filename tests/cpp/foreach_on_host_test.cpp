// The CUDA kernels of many tensors, run on the CPU by cuda_on_host.h, against those of one with its key moved on:
// samples and gradients have the same bits, sums agree, nothing is written outside, and launches are few. Prints each
// check that failed, and then returns 1.
#include <cmath>

#include "arrays.h"
#include "cuda/kernels.h"
#include "cuda_on_host.h"

namespace illia {
namespace cuda {
namespace {

struct Size {
  int64_t numel;
  int shift = 0;            // elements off the alignment
  bool each_prior = false;  // one for each element, in place of one for all
};

struct Case {
  const char* name;
  std::vector<Size> sizes;
  int64_t num_samples = 1;
  int most_launches = 1;  // without the one that adds tiles
  bool stick_the_landing = false, antithetic = false, families = false;
};

// One tensor's memory; the second of each pair is for the launch of its own.
struct Memory {
  Array mu, rho, grad_x, mu_priors, std_priors, x[2], grad_mu[2], grad_rho[2];
  float std_prior;  // lies in memory: the kernels read it
  std::vector<Key> keys;
};

void test_case(const Case& c, const char* type_names, Types types) {
  const auto name = [&](const char* what, size_t k = 0) {
    return std::string(what) + ": " + c.name + ", " + type_names + ", tensor " + std::to_string(k);
  };
  const Storage parameters = types.parameters, sample = types.sample;
  const bool in_double = parameters == Storage::kDouble;
  const Storage acc = in_double ? Storage::kDouble : Storage::kFloat;
  const int64_t normals = in_double ? 2 : 4, num_samples = c.num_samples;
  const Launch launch_on{types, nullptr};

  // 1. The parts, and what each is as a tensor of its own, whose keys are moved on by the blocks before it.
  std::vector<Key> keys;
  for (int64_t s = 0; s < num_samples; ++s)
    keys.push_back({0x9E3779B97F4A7C15u * static_cast<uint64_t>(s + 1), ~uint64_t{0} - static_cast<uint64_t>(2 * s)});
  Array grad_log_prob = Array(acc, num_samples).fill(4, 1, 0.5), grad_kl = Array(acc, 1).fill(5, 1, 0.5);
  std::vector<Memory> memory;
  memory.reserve(c.sizes.size());
  Parts<SampleArgs> samples[2];
  Parts<SampleBackwardArgs> backwards[2];
  Parts<KlDivergenceArgs> kls[2];
  Parts<KlDivergenceBackwardArgs> kl_backwards[2];
  int64_t num_tiles = 0, place = 0;
  bool all_plain = true;
  for (size_t k = 0; k < c.sizes.size(); ++k) {
    const auto [numel, shift, each_prior] = c.sizes[k];
    const unsigned seed = 10 * static_cast<unsigned>(k);
    const auto array = [&, numel = numel, shift = shift](Storage storage, int64_t rows = 1) {
      return Array(storage, rows * numel, shift);
    };
    memory.push_back({array(parameters).fill(seed, 0, 0.3),
                      array(parameters).fill(seed + 1, -3, 3),
                      array(sample, num_samples).fill(seed + 2, 0, 1),
                      array(acc).fill(seed + 3, 0.25, 0.3),
                      array(acc).fill(seed + 4, 0.5, 0.03),
                      {array(sample, num_samples), array(sample, num_samples)},
                      {array(parameters), array(parameters)},
                      {array(parameters), array(parameters)},
                      0.5f + 0.01f * static_cast<float>(k % 7),
                      keys});
    Memory& m = memory.back();
    for (Key& key : m.keys) key.offset += static_cast<uint64_t>(place / normals);
    General general;
    general.antithetic = c.antithetic;
    if (c.families && k % 2) general.family = {Family::kLaplace, 0.25};
    if (c.families && k % 3 == 1) general.family = {Family::kScaleMixture, 0.75, 3, 40};
    PriorScalars prior{{nullptr, Storage::kDouble, 0.1 * (k % 5)}, {&m.std_prior, Storage::kFloat, 0}};
    if (each_prior) {
      general.mu_prior = m.mu_priors.data(), general.std_prior = m.std_priors.data();
      prior = {};
    }
    // What all arguments have: one of all parts, or of a tensor of its own.
    const auto start = [&, numel = numel](auto args) {
      args.mu = m.mu.data(), args.rho = m.rho.data(), args.numel = numel, args.prior = prior;
      return args;
    };
    for (int i : {0, 1}) {
      const Key* part_keys = i == 0 ? keys.data() : m.keys.data();
      general.block.first = i == 0 ? place : 0;
      SampleArgs draw = start(SampleArgs{});
      draw.keys = part_keys, draw.num_samples = num_samples, draw.x = m.x[i].data();
      samples[i].push_back({draw, general});
      SampleBackwardArgs backward = start(SampleBackwardArgs{});
      backward.grad_x = k % 3 == 1 ? nullptr : m.grad_x.data(), backward.grad_log_prob = grad_log_prob.data();
      backward.keys = part_keys, backward.num_samples = num_samples;
      backward.grad_mu = m.grad_mu[i].data(), backward.grad_rho = m.grad_rho[i].data();
      backwards[i].push_back({backward, general});
      backwards[i].back().general.stick_the_landing = c.stick_the_landing;
      general.block = {};
      kls[i].push_back({start(KlDivergenceArgs{}), general});
      KlDivergenceBackwardArgs kl_backward = start(KlDivergenceBackwardArgs{});
      kl_backward.grad = grad_kl.data();
      kl_backward.grad_mu = m.grad_mu[i].data(), kl_backward.grad_rho = m.grad_rho[i].data();
      kl_backwards[i].push_back({kl_backward, general});
    }
    num_tiles += count_tiles(launch_on.types, numel, general);
    place += (numel + normals - 1) / normals * normals;
    all_plain = all_plain && general.is_plain_row();
  }

  // 2. Sums agree with those of single launches, each of which is rounded: by 2^-24 (2^-53) of it, and so is their sum.
  const auto check_sums = [&](auto(&parts)[2], auto member, int64_t rows, const char* what) {
    Array sums[2] = {Array(acc, rows), Array(acc, rows)};
    std::vector<double> scratch(rows * num_tiles), expected(rows), absolute(rows);
    for (Array& result : sums) {
      const TileSums all{result.data(), num_tiles > 1 ? scratch.data() : nullptr, num_tiles};
      int64_t first_tile = 0;
      for (auto& [args, general] : parts[0]) {
        args.*member = all.partials ? TileSums{nullptr, all.partials + first_tile, num_tiles} : all;
        first_tile += count_tiles(launch_on.types, args.numel, general);
      }
      host_launches = 0;
      expect(launch(launch_on, parts[0]) == nullptr, name(what));
      expect(host_launches <= c.most_launches + !all_plain, name(what));  // a table of those that are not
      expect(launch_sums(launch_on, all, rows) == nullptr && result.sentinels_stand(), name(what));
      host_grid_limit = dim3(3, 1);
    }
    host_grid_limit = dim3(0xFFFFFFFF, 0xFFFFFFFF);
    expect(sums[0].same_bits(sums[1]), name("a sum depends on the grid"));
    for (auto& [args, general] : parts[1]) {
      Array one(acc, rows);
      const int64_t tiles = count_tiles(launch_on.types, args.numel, general);
      std::vector<double> own_scratch(tiles * rows);
      args.*member = {one.data(), tiles > 1 ? own_scratch.data() : nullptr, tiles};
      launch(launch_on, args, general);
      launch_sums(launch_on, args.*member, rows);
      for (int64_t s = 0; s < rows; ++s) expected[s] += one.value(s), absolute[s] += std::fabs(one.value(s));
    }
    const double tolerance = in_double ? 1e-14 : 0x1p-23;
    for (int64_t s = 0; s < rows; ++s)
      expect(std::fabs(sums[0].value(s) - expected[s]) <= tolerance * absolute[s], name(what));
  };
  check_sums(samples, &SampleArgs::log_prob, num_samples, "log_prob");
  if (parameters == sample) check_sums(kls, &KlDivergenceArgs::kl_divergence, 1, "kl_divergence");

  // 3. Samples and gradients.
  const auto check_grads = [&](const auto(&parts)[2], const char* what) {
    host_launches = 0;
    expect(launch(launch_on, parts[0]) == nullptr, name(what));
    expect(host_launches <= c.most_launches + !all_plain, name("launches of a backward"));
    for (size_t k = 0; k < memory.size(); ++k) {
      launch(launch_on, parts[1][k].args, parts[1][k].general);
      for (Array(*pair)[2] : {&memory[k].grad_mu, &memory[k].grad_rho})
        expect((*pair)[0].same_bits((*pair)[1]) && (*pair)[0].sentinels_stand(), name(what, k));
    }
  };
  for (size_t k = 0; k < memory.size(); ++k)
    expect(memory[k].x[0].same_bits(memory[k].x[1]) && memory[k].x[0].sentinels_stand(), name("x", k));
  for (bool with_log_prob : {true, false}) {
    if (!with_log_prob && c.stick_the_landing) continue;
    for (auto& parts : backwards)
      for (auto& part : parts) part.args.grad_log_prob = with_log_prob ? grad_log_prob.data() : nullptr;
    check_grads(backwards, "gradients of the sample");
  }
  if (parameters == sample) check_grads(kl_backwards, "gradients of kl_divergence");
}

}  // namespace
}  // namespace cuda
}  // namespace illia

int main() {
  using illia::cuda::Case, illia::cuda::Size;
  const std::vector<Size> mixed{{0}, {1}, {3}, {4096}, {4097, 1}, {0}, {9000}, {4097}, {3, 1}};
  std::vector<Size> many;  // more than two tables hold
  for (int64_t k = 0; k < 600; ++k) many.push_back({k % 6});
  const std::vector<Size> some_general{{4097}, {2051, 1, true}, {5}, {3, 0, true}};
  for (const auto& [name, types] : illia::kTypes)
    for (const Case& c :
         {Case{"mixed", mixed}, Case{"three samples", mixed, 3}, Case{"no sample", {{5}, {4097}}, 0},
          Case{"one element", {{0}, {1}}}, Case{"no element", {{0}, {0}}},
          Case{"one element against its own prior", {{1, 0, true}}}, Case{"priors for each element", some_general, 2},
          Case{"stick_the_landing", some_general, 2, 1, true}, Case{"antithetic", some_general, 4, 1, false, true},
          Case{"antithetic pairs of plain tensors", mixed, 4, 1, false, true},
          Case{"families", some_general, 2, 1, false, false, true}})
      illia::cuda::test_case(c, name, types);
  illia::cuda::test_case({"many", many, 1, 3}, illia::kTypes[0].first, illia::kTypes[0].second);
  illia::cuda::test_case({"many, families", many, 1, 40, false, false, true}, illia::kTypes[0].first,
                         illia::kTypes[0].second);
  host_driver = 12000;  // which takes 4 KB of arguments
  illia::cuda::test_case({"many, old driver", many, 1, 24}, illia::kTypes[0].first, illia::kTypes[0].second);
  std::fprintf(stderr, "%d checks of the CUDA kernels of many tensors on the host failed\n", illia::failures);
  return illia::failures > 0;
}
