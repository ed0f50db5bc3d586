// Every CPU kernel of base and avx2 (valgrind knows no AVX-512) over fresh memory, for valgrind's memcheck: no branch
// and no address may depend on memory that nobody wrote, and every byte of a result must be defined. With an argument
// rho is left unwritten on purpose. Prints how many results are undefined.
#include <valgrind/memcheck.h>

#include <cstdio>
#include <cstdlib>

#include "cpu/kernels.h"

namespace {

using namespace illia;

int results = 0, undefined = 0;

struct Memory {
  explicit Memory(Storage storage, int64_t numel)
      : storage(storage),
        numel(numel),
        width(storage == Storage::kDouble  ? 8
              : storage == Storage::kFloat ? 4
                                           : 2) {
    data = std::malloc(numel * width + 1);
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;

  // Small numbers: 1 in the 16-bit types, whose bits are those of half or bfloat16.
  const Memory& written() const {
    for (int64_t i = 0; i < numel; ++i) {
      if (storage == Storage::kDouble) static_cast<double*>(data)[i] = 1.0 / (1 + i % 7);
      if (storage == Storage::kFloat) static_cast<float*>(data)[i] = 1.0f / (1 + i % 7);
      if (width == 2) static_cast<uint16_t*>(data)[i] = storage == Storage::kHalf ? 0x3C00 : 0x3F80;
    }
    return *this;
  }
  operator ConstView() const { return {data, storage}; }
  operator MutableView() const { return {data, storage}; }
  operator double*() const { return static_cast<double*>(data); }

  void check(const char* what) const {
    ++results;
    if (VALGRIND_CHECK_MEM_IS_DEFINED(data, numel * width) == 0) return;
    ++undefined;
    std::fprintf(stderr, "undefined: %s of %ld elements\n", what, static_cast<long>(numel));
  }

  const Storage storage;
  const int64_t numel, width;
  void* data;
};

void run(const Kernels& kernels, Storage storage, int64_t numel, const Block& block, bool each, bool fault) {
  const bool in_double = storage == Storage::kDouble;
  const KernelTable& table = in_double ? kernels.in_double : kernels.in_float;
  const Storage acc = in_double ? Storage::kDouble : Storage::kFloat;
  constexpr int64_t kSamples = 2;
  const Key keys[kSamples] = {{1, 2}, {3, ~uint64_t{0} - 1}};
  const double grad_log_prob[kSamples] = {0.5, 2};
  const int64_t chunks = count_chunks(numel), total = kSamples * numel;
  const Memory mu(storage, numel), rho(storage, numel), mu_prior(acc, numel), std_prior(acc, numel);
  const Memory grad_x(storage, total), x(storage, total), eps(storage, total);
  mu.written(), mu_prior.written(), std_prior.written(), grad_x.written();
  if (!fault) rho.written();
  const PriorValues prior{0.25, 0.5, each ? mu_prior.data : nullptr, each ? std_prior.data : nullptr};
  const auto backward = [&](const char* what, auto function) {
    const Memory grad_mu(storage, numel), grad_rho(storage, numel), mu_each(acc, numel), std_each(acc, numel);
    std::vector<double> mu_sums(chunks), std_sums(chunks);
    function(grad_mu, grad_rho,
             each ? PriorGradTargets{mu_each.data, std_each.data, nullptr, nullptr}
                  : PriorGradTargets{nullptr, nullptr, mu_sums.data(), std_sums.data()});
    grad_mu.check(what), grad_rho.check(what);
    if (each) mu_each.check(what), std_each.check(what);
  };
  const Memory sums(Storage::kDouble, kSamples * chunks), other_sums(Storage::kDouble, kSamples * chunks);
  const Memory kl_sums(Storage::kDouble, chunks), to_x(storage, total);

  table.standard_normal({keys, kSamples, numel, eps, block}, 0, chunks);
  table.sample({mu, rho, keys, kSamples, numel, prior, x, sums, block}, 0, chunks);
  eps.check("standard_normal"), x.check("sample"), sums.check("log_prob of a sample");
  for (bool stick_the_landing : {false, true})
    backward("sample_backward", [&](MutableView to_mu, MutableView to_rho, const PriorGradTargets& targets) {
      table.sample_backward({grad_x, grad_log_prob, mu, rho, keys, kSamples, numel, prior, to_mu, to_rho, block,
                             targets, stick_the_landing},
                            0, chunks);
    });
  table.log_prob({grad_x, mu, rho, kSamples, numel, prior, other_sums}, 0, chunks);
  other_sums.check("log_prob");
  backward("log_prob_backward", [&](MutableView to_mu, MutableView to_rho, const PriorGradTargets& targets) {
    table.log_prob_backward({grad_log_prob, grad_x, mu, rho, kSamples, numel, prior, to_x, to_mu, to_rho, targets}, 0,
                            chunks);
  });
  to_x.check("log_prob_backward");
  table.kl_divergence({mu, rho, numel, prior, kl_sums}, 0, chunks);
  kl_sums.check("kl_divergence");
  backward("kl_divergence_backward", [&](MutableView to_mu, MutableView to_rho, const PriorGradTargets& targets) {
    table.kl_divergence_backward({0.5, mu, rho, numel, prior, to_mu, to_rho, targets}, 0, chunks);
  });
}

}  // namespace

int main(int argc, char**) {
  const Block rows{5, 3, 1, {100000}, {7}};
  std::vector<const Kernels*> instruction_sets{&base::kKernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) instruction_sets.push_back(&avx2::kKernels);
#endif
  for (const Kernels* kernels : instruction_sets)
    for (Storage storage : {Storage::kFloat, Storage::kDouble, Storage::kHalf, Storage::kBFloat16})
      for (int64_t numel : {1, 259, 1024, 1030})
        for (bool each : {false, true})
          for (const Block& block : {Block{}, rows}) run(*kernels, storage, numel, block, each, argc > 1);
  std::printf("%d of %d\n", undefined, results);
}
