// The parts that the CPU kernels share: plain loops over one chunk of contiguous elements.
//
// Sums run in 16 fixed lanes of at most 64 elements a chunk, then over the lanes in double: the same additions in the
// same order whatever the vector width.
#pragma once

#include "core/gaussian.h"
#include "core/normal.h"
#include "cpu/storage.h"

ILLIA_NAMESPACE_BEGIN

constexpr int kLanes = 16;
constexpr int kNormalsTile = 64;  // normals drawn at once; a chunk is a multiple of it
static_assert(kChunkSize % kNormalsTile == 0 && kNormalsTile % kLanes == 0 && kChunkSize / kLanes <= 64);

template <typename acc_t>
using Buffer = acc_t[kChunkSize];

struct Chunk {
  int64_t index, first, count;
};

template <typename function_t>
ILLIA_FUNCTION void for_each_chunk(int64_t begin, int64_t end, int64_t numel, function_t function) {
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kChunkSize;
    function(Chunk{index, first, numel - first < kChunkSize ? numel - first : kChunkSize});
  }
}

// function(first, lanes) for each row of lanes; all but the last row have a constant kLanes, which unrolls.
template <typename function_t>
ILLIA_FUNCTION void for_each_row(int64_t count, function_t function) {
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) function(first, kLanes);
  if (first < count) function(first, count - first);
}

template <typename acc_t>
struct LaneSum {
  acc_t lanes[kLanes] = {};

  double total() const {
    double sum = 0;
    for (acc_t lane : lanes) sum += lane;
    return sum;
  }
};

// Sum of log sigma: a product of mantissas and a sum of exponents in place of one logarithm an element.
template <typename acc_t>
struct LogSigmaSum {
  using int_t = typename FloatFormat<acc_t>::int_t;
  LaneSum<acc_t> linear;
  acc_t mantissas[kLanes];
  int_t exponents[kLanes] = {};

  LogSigmaSum() {
    for (acc_t& mantissa : mantissas) mantissa = 1;
  }

  ILLIA_FUNCTION void add(int64_t lane, acc_t rho, acc_t factor) {
    int_t exponent;
    mantissas[lane] *= split_mantissa(factor, &exponent);
    exponents[lane] += exponent;
    linear.lanes[lane] += linear_log_sigma(rho);
  }

  double total(int64_t count) const {
    double mantissa = 1;
    int64_t exponent = -count * FloatFormat<acc_t>::kExponentBias - kLanes * FloatFormat<double>::kExponentBias;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      int64_t carry;
      mantissa = split_mantissa(mantissa * static_cast<double>(mantissas[lane]), &carry);
      exponent += exponents[lane] + carry;
    }
    return linear.total() + std::fma(static_cast<double>(exponent), Constants<double>::kLn2, log_normal(mantissa));
  }
};

// eps[i] is normal first + i of the key's stream. Writes whole tiles: eps holds kChunkSize.
template <typename acc_t>
void standard_normal_chunk(const Key& key, const Chunk& chunk, acc_t* __restrict eps) {
  constexpr int64_t kNormals = kNormalsPerBlock<acc_t>;
  const uint64_t counter = key.offset + static_cast<uint64_t>(chunk.first / kNormals);
  for (int64_t first = 0; first < chunk.count; first += kNormalsTile) {
    for (int64_t block = 0; block < kNormalsTile / kNormals; ++block) {
      acc_t normals[kNormals];
      block_normals(philox4x32<uint64_t>(key.seed, counter + first / kNormals + block), normals);
      for (int64_t k = 0; k < kNormals; ++k) eps[first + block * kNormals + k] = normals[k];
    }
  }
}

// sigma, and with kLogProb the sum of log sigma.
template <typename acc_t, bool kLogProb>
double softplus_chunk(const acc_t* __restrict rho, int64_t count, acc_t* __restrict sigma) {
  LogSigmaSum<acc_t> sum;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Softplus<acc_t> s = softplus(rho[first + lane]);
      sigma[first + lane] = s.sigma;
      if constexpr (kLogProb) sum.add(lane, rho[first + lane], s.factor);
    }
  });
  return kLogProb ? sum.total(count) : 0;
}

// sigma and its derivatives.
template <typename acc_t>
void softplus_backward_chunk(const acc_t* __restrict rho, int64_t count, acc_t* __restrict sigma, acc_t* __restrict dsigma,
                             acc_t* __restrict h) {
  for (int64_t i = 0; i < count; ++i) {
    const Softplus<acc_t> s = softplus(rho[i]);
    const acc_t h_i = log_sigma_derivative(s);
    sigma[i] = s.sigma;
    dsigma[i] = sigmoid(rho[i], s, h_i);
    h[i] = h_i;
  }
}

ILLIA_NAMESPACE_END
