// The CUDA kernels, run on the CPU by cuda_on_host.h, against the CPU kernels: samples, noise and gradients have the
// same bits, sums agree, and nothing is written outside. Prints each check that failed, and then returns 1.
#include "cuda_on_host.h"
// The order matters: the kernels are compiled as what the header above makes of them.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "cpu/kernels.h"
#include "cuda/log_prob_kernel.cu"
#include "cuda/sample_kernel.cu"

namespace illia {
namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
}

size_t width_of(Storage storage) { return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2; }

// Memory of `numel` elements `shift` elements behind a 64-byte boundary, between sentinels.
class Array {
 public:
  Array(Storage storage, int64_t numel, int shift = 0)
      : storage(storage), width_(width_of(storage)), bytes_(numel * width_), memory_(bytes_ + 256, kSentinel) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data()) + 64;
    offset_ = ((begin + 63) & ~uintptr_t{63}) - begin + 64 + shift * width_;
  }

  // `scale` times a standard normal, plus `center`.
  Array& fill(unsigned seed, double center, double scale) {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal(center, scale);
    for (size_t i = 0; i < bytes_ / width_; ++i) {
      const double value = normal(engine);
      char* place = data() + i * width_;
      if (storage == Storage::kDouble) std::memcpy(place, &value, 8);
      const float single = static_cast<float>(value);
      if (storage == Storage::kFloat) std::memcpy(place, &single, 4);
      const __half half = __float2half_rn(single);
      if (storage == Storage::kHalf) std::memcpy(place, &half, 2);
      const __nv_bfloat16 brain = __float2bfloat16_rn(single);
      if (storage == Storage::kBFloat16) std::memcpy(place, &brain, 2);
    }
    return *this;
  }

  char* data() { return memory_.data() + offset_; }
  ConstView view() { return {data(), storage}; }
  MutableView target() { return {data(), storage}; }
  double value(int64_t i) {
    float single = 0;
    double result = 0;
    std::memcpy(storage == Storage::kDouble ? static_cast<void*>(&result) : &single, data() + i * width_, width_);
    return storage == Storage::kDouble ? result : single;
  }

  bool same_bits(Array& other) { return std::memcmp(data(), other.data(), bytes_) == 0; }
  bool sentinels_stand() const {
    for (size_t i = 0; i < memory_.size(); ++i)
      if ((i < offset_ || i >= offset_ + bytes_) && memory_[i] != kSentinel) return false;
    return true;
  }

  const Storage storage;

 private:
  static constexpr char kSentinel = 0x5A;
  size_t width_, bytes_;
  std::vector<char> memory_;
  size_t offset_;
};

struct Case {
  Storage parameters, sample;
  int64_t numel, num_samples;
  int shift;  // elements off the alignment

  std::string name(const char* what) const {
    return std::string(what) + ": parameters " + std::to_string(static_cast<int>(parameters)) + ", sample " +
           std::to_string(static_cast<int>(sample)) + ", numel " + std::to_string(numel) + ", num_samples " +
           std::to_string(num_samples) + ", shift " + std::to_string(shift);
  }
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

void test_case(const Case& c) {
  const bool in_double = c.parameters == Storage::kDouble;
  const Storage acc = in_double ? Storage::kDouble : Storage::kFloat;
  const KernelTable& cpu = in_double ? base::kKernels.in_double : base::kKernels.in_float;
  const cuda::Launch launch{c.parameters, c.sample, nullptr};
  const int64_t total = c.numel * c.num_samples, cpu_chunks = count_chunks(c.numel);
  const int64_t num_tiles = cuda::count_tiles(c.parameters, c.numel);
  const int64_t stored_tiles = num_tiles > 1 ? num_tiles : 0;  // one tile's sum is the result
  const auto array = [&](Storage storage, int64_t numel) { return Array(storage, numel, c.shift); };

  Array mu = array(c.parameters, c.numel).fill(1, 0, 0.3), rho = array(c.parameters, c.numel).fill(2, -3, 3);
  Array grad_x = array(c.sample, total).fill(3, 0, 1), grad_log_prob = array(acc, c.num_samples).fill(4, 1, 0.5);
  std::vector<Key> keys;
  for (int64_t s = 0; s < c.num_samples; ++s)
    keys.push_back({0x9E3779B97F4A7C15u * static_cast<uint64_t>(s + 1), ~uint64_t{0} - static_cast<uint64_t>(2 * s)});
  std::vector<double> log_prob_grads;
  for (int64_t s = 0; s < c.num_samples; ++s) log_prob_grads.push_back(grad_log_prob.value(s));
  const PriorValues prior{0.25, 0.5};
  const cuda::PriorScalars scalars{{nullptr, Storage::kDouble, prior.mu}, {&prior.std, Storage::kDouble, 0}};
  // Both sides add up to 32 floats in a row: each is off by at most 32 2^-24 of the absolute sum.
  const double tolerance = in_double ? 1e-14 : 4e-6;

  const auto check_sums = [&](Array& result, const std::vector<double>& partials, int64_t samples, const char* what) {
    for (int64_t s = 0; s < samples; ++s) {
      double absolute = c.numel;
      const double expected = sum(partials, s, cpu_chunks, &absolute);
      expect(std::fabs(result.value(s) - expected) <= tolerance * absolute, c.name(what));
    }
  };
  const auto check_equal = [&](Array& ours, Array& theirs, const char* what) {
    expect(ours.same_bits(theirs) && ours.sentinels_stand(), c.name(what));
  };

  // 1. Noise.
  if (c.parameters == c.sample) {
    Array ours = array(c.sample, total), theirs = array(c.sample, total);
    launch_standard_normal(launch, {keys.data(), c.num_samples, c.numel, ours.data()});
    cpu.standard_normal({keys.data(), c.num_samples, c.numel, theirs.target()}, 0, cpu_chunks);
    check_equal(ours, theirs, "standard_normal");
  }
  // 2. A sample and its log_prob, on two grids.
  Array x = array(c.sample, total);
  {
    Array other = array(c.sample, total), theirs = array(c.sample, total);
    Array log_prob(acc, c.num_samples), other_log_prob(acc, c.num_samples);
    std::vector<double> scratch(c.num_samples * stored_tiles), partials(c.num_samples * cpu_chunks);
    cuda::SampleArgs args{mu.data(), rho.data(), keys.data(),     c.num_samples, c.numel,
                          scalars,   x.data(),   log_prob.data(), scratch.data()};
    host_launches = 0;
    launch_sample(launch, args);
    expect(host_launches <= 2, c.name("launches of sample_and_log_prob"));
    args.x = other.data(), args.log_prob = other_log_prob.data();
    host_grid_limit = dim3(2, 1);
    launch_sample(launch, args);
    host_grid_limit = dim3(0xFFFFFFFF, 0xFFFFFFFF);
    cpu.sample({mu.view(), rho.view(), keys.data(), c.num_samples, c.numel, prior, theirs.target(), partials.data()}, 0,
               cpu_chunks);
    check_equal(x, theirs, "sample");
    check_equal(other, theirs, "sample on a small grid");
    expect(log_prob.same_bits(other_log_prob), c.name("the sum depends on the grid"));
    check_sums(log_prob, partials, c.num_samples, "log_prob of the sample");
    args.log_prob = nullptr;
    launch_sample(launch, args);
    check_equal(other, theirs, "sample without its sum");
  }
  // 3. Its backward, with each of its gradients or without.
  for (bool with_x : {true, false})
    for (bool with_log_prob : {true, false}) {
      Array grad_mu = array(c.parameters, c.numel), grad_rho = array(c.parameters, c.numel);
      Array their_mu = array(c.parameters, c.numel), their_rho = array(c.parameters, c.numel);
      host_launches = 0;
      launch_sample_backward(
          launch, {with_x ? grad_x.data() : nullptr, with_log_prob ? grad_log_prob.data() : nullptr, mu.data(),
                   rho.data(), keys.data(), c.num_samples, c.numel, scalars, grad_mu.data(), grad_rho.data()});
      expect(host_launches <= 1, c.name("launches of the backward"));
      cpu.sample_backward(
          {with_x ? grad_x.view() : ConstView{}, with_log_prob ? log_prob_grads.data() : nullptr, mu.view(), rho.view(),
           keys.data(), c.num_samples, c.numel, prior, their_mu.target(), their_rho.target()},
          0, cpu_chunks);
      check_equal(grad_mu, their_mu, "grad_mu of the sample");
      check_equal(grad_rho, their_rho, "grad_rho of the sample");
    }
  // 4. log_prob of a given x, and its backward.
  {
    Array log_prob(acc, c.num_samples);
    std::vector<double> scratch(c.num_samples * stored_tiles), partials(c.num_samples * cpu_chunks);
    launch_log_prob(
        launch, {x.data(), mu.data(), rho.data(), c.num_samples, c.numel, scalars, log_prob.data(), scratch.data()});
    cpu.log_prob({x.view(), mu.view(), rho.view(), c.num_samples, c.numel, prior, partials.data()}, 0, cpu_chunks);
    check_sums(log_prob, partials, c.num_samples, "log_prob");
    Array ours[] = {array(c.sample, total), array(c.parameters, c.numel), array(c.parameters, c.numel)};
    Array theirs[] = {array(c.sample, total), array(c.parameters, c.numel), array(c.parameters, c.numel)};
    launch_log_prob_backward(launch, {grad_log_prob.data(), x.data(), mu.data(), rho.data(), c.num_samples, c.numel,
                                      scalars, ours[0].data(), ours[1].data(), ours[2].data()});
    cpu.log_prob_backward({log_prob_grads.data(), x.view(), mu.view(), rho.view(), c.num_samples, c.numel, prior,
                           theirs[0].target(), theirs[1].target(), theirs[2].target()},
                          0, cpu_chunks);
    for (int i = 0; i < 3; ++i) check_equal(ours[i], theirs[i], "log_prob_backward");
  }
  // 5. The closed-form KL divergence, and its backward.
  if (c.parameters == c.sample && c.num_samples == 1) {
    Array kl(acc, 1);
    std::vector<double> scratch(stored_tiles), partials(cpu_chunks);
    launch_kl_divergence(launch, {mu.data(), rho.data(), c.numel, scalars, kl.data(), scratch.data()});
    cpu.kl_divergence({mu.view(), rho.view(), c.numel, prior, partials.data()}, 0, cpu_chunks);
    check_sums(kl, partials, 1, "kl_divergence");
    Array grad_mu = array(c.parameters, c.numel), grad_rho = array(c.parameters, c.numel);
    Array their_mu = array(c.parameters, c.numel), their_rho = array(c.parameters, c.numel);
    launch_kl_divergence_backward(
        launch, {grad_log_prob.data(), mu.data(), rho.data(), c.numel, scalars, grad_mu.data(), grad_rho.data()});
    cpu.kl_divergence_backward(
        {log_prob_grads[0], mu.view(), rho.view(), c.numel, prior, their_mu.target(), their_rho.target()}, 0,
        cpu_chunks);
    check_equal(grad_mu, their_mu, "grad_mu of kl_divergence");
    check_equal(grad_rho, their_rho, "grad_rho of kl_divergence");
  }
}

}  // namespace
}  // namespace illia

int main() {
  using illia::Storage;
  const std::pair<Storage, Storage> types[] = {
      {Storage::kFloat, Storage::kFloat}, {Storage::kDouble, Storage::kDouble},
      {Storage::kHalf, Storage::kHalf},   {Storage::kBFloat16, Storage::kBFloat16},
      {Storage::kFloat, Storage::kHalf},  {Storage::kFloat, Storage::kBFloat16}};
  for (const auto& [parameters, sample] : types) {
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
      illia::test_case({parameters, sample, numel, num_samples, shift});
  }
  std::fprintf(stderr, "%d checks of the CUDA kernels on the host failed\n", illia::failures);
  return illia::failures > 0;
}
