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
  double* doubles() const { return static_cast<double*>(data); }

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
  const int64_t chunks = count_chunks(numel), total = kSamples * numel;
  const Memory mu(storage, numel), rho(storage, numel), mu_prior(acc, numel), std_prior(acc, numel);
  const Memory grad_x(storage, total), x(storage, total), eps(storage, total), grad_log_prob(acc, kSamples);
  mu.written(), mu_prior.written(), std_prior.written(), grad_x.written(), grad_log_prob.written();
  if (!fault) rho.written();
  General general;
  general.block = block;
  if (each) general.mu_prior = mu_prior.data, general.std_prior = std_prior.data;

  // What all arguments have.
  const auto start = [&](auto args) {
    args.mu = mu.data, args.rho = rho.data, args.numel = numel;
    args.prior = {{nullptr, Storage::kDouble, 0.25}, {nullptr, Storage::kDouble, 0.5}};
    return args;
  };
  const auto call = [&](const auto& args, const General& general) {
    table.get<std::decay_t<decltype(args)>>()(args, general, {storage, storage}, 0, chunks);
  };
  const auto backward = [&](const char* what, auto args, bool stick_the_landing = false) {
    const Memory grad_mu(storage, numel), grad_rho(storage, numel), mu_each(acc, numel), std_each(acc, numel);
    std::vector<double> sums(2 * chunks);
    double not_read;  // a kernel leaves its sums in the partials
    General asked = general;
    asked.stick_the_landing = stick_the_landing;
    if (each) {
      asked.mu_prior_grad.each = mu_each.data, asked.std_prior_grad.each = std_each.data;
    } else {
      asked.mu_prior_grad.sum = &not_read, asked.std_prior_grad.sum = &not_read;
      asked.prior_partials = sums.data();
    }
    args.grad_mu = grad_mu.data, args.grad_rho = grad_rho.data;
    call(args, asked);
    grad_mu.check(what), grad_rho.check(what);
    if (each) mu_each.check(what), std_each.check(what);
  };
  const Memory sums(Storage::kDouble, kSamples * chunks), other_sums(Storage::kDouble, kSamples * chunks);
  const Memory kl_sums(Storage::kDouble, chunks), to_x(storage, total);

  StandardNormalArgs normal{};
  normal.keys = keys, normal.num_samples = kSamples, normal.numel = numel, normal.eps = eps.data;
  call(normal, general);
  SampleArgs sample = start(SampleArgs{});
  sample.keys = keys, sample.num_samples = kSamples, sample.x = x.data;
  sample.log_prob = {nullptr, sums.doubles(), chunks};
  call(sample, general);
  eps.check("standard_normal"), x.check("sample"), sums.check("log_prob of a sample");

  SampleBackwardArgs sample_backward = start(SampleBackwardArgs{});
  sample_backward.grad_x = grad_x.data, sample_backward.grad_log_prob = grad_log_prob.data;
  sample_backward.keys = keys, sample_backward.num_samples = kSamples;
  for (bool stick_the_landing : {false, true}) backward("sample_backward", sample_backward, stick_the_landing);

  LogProbArgs log_prob = start(LogProbArgs{});
  log_prob.x = grad_x.data, log_prob.num_samples = kSamples;
  log_prob.log_prob = {nullptr, other_sums.doubles(), chunks};
  call(log_prob, general);
  other_sums.check("log_prob");
  LogProbBackwardArgs log_prob_backward = start(LogProbBackwardArgs{});
  log_prob_backward.grad_log_prob = grad_log_prob.data, log_prob_backward.x = grad_x.data;
  log_prob_backward.num_samples = kSamples, log_prob_backward.grad_x = to_x.data;
  backward("log_prob_backward", log_prob_backward);
  to_x.check("log_prob_backward");

  KlDivergenceArgs kl_divergence = start(KlDivergenceArgs{});
  kl_divergence.kl_divergence = {nullptr, kl_sums.doubles(), chunks};
  call(kl_divergence, general);
  kl_sums.check("kl_divergence");
  KlDivergenceBackwardArgs kl_backward = start(KlDivergenceBackwardArgs{});
  kl_backward.grad = grad_log_prob.data;
  backward("kl_divergence_backward", kl_backward);
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
