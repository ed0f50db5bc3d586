// The parts that the CPU kernels share: plain loops over a piece of contiguous elements.
//
// Sums run in 32 fixed lanes of at most 32 elements a chunk, then over the lanes in double: the same additions in the
// same order whatever the vector width. Of equal elements, the worst case, 16 lanes of 64 lose more than 1e-6.
#pragma once

#include "core/gaussian.h"
#include "cpu/storage.h"

ILLIA_NAMESPACE_BEGIN

constexpr int kLanes = 32;
constexpr int kNormalsBatch = 128;  // normals drawn at once
static_assert(kChunkSize % kNormalsBatch == 0 && kNormalsBatch % kLanes == 0 && kChunkSize / kLanes <= 32);

// Forward kernels work on whole chunks, whose sums they return; backward kernels, which read and write more arrays, on
// tiles that fit into the first-level cache together.
constexpr int64_t kTileSize = 256;
static_assert(kChunkSize % kTileSize == 0 && kTileSize % kNormalsBatch == 0);

template <typename acc_t, int64_t kSize>
using Buffer = acc_t[kSize];

struct Piece {
  int64_t first, count;
};

// function(piece) for each piece of kSize elements (the last may be shorter) of the chunks in [begin, end).
template <int64_t kSize, typename function_t>
ILLIA_FUNCTION void for_each_piece(int64_t begin, int64_t end, int64_t numel, function_t function) {
  const int64_t stop = end * kChunkSize < numel ? end * kChunkSize : numel;
  for (int64_t first = begin * kChunkSize; first < stop; first += kSize)
    function(Piece{first, stop - first < kSize ? stop - first : kSize});
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

// Sum of linear + log(factor): a product of mantissas and a sum of exponents in place of one logarithm an element.
template <typename acc_t>
struct LogSum {
  using int_t = typename FloatFormat<acc_t>::int_t;
  LaneSum<acc_t> linear;
  acc_t mantissas[kLanes];
  int_t exponents[kLanes] = {};

  LogSum() {
    for (acc_t& mantissa : mantissas) mantissa = 1;
  }

  ILLIA_FUNCTION void add(int64_t lane, acc_t factor, acc_t linear_part) {
    int_t exponent;
    mantissas[lane] *= split_mantissa(factor, &exponent);
    exponents[lane] += exponent;
    linear.lanes[lane] += linear_part;
  }

  double total(int64_t count) const {
    double mantissa = 1;
    int64_t exponent = -count * FloatFormat<acc_t>::kExponentBias - 2 * FloatFormat<double>::kExponentBias;
    // a lane is a product of at most 32 mantissas below 2, and 16 lanes stay in the range of a double
    for (int64_t first = 0; first < kLanes; first += kLanes / 2) {
      for (int64_t lane = first; lane < first + kLanes / 2; ++lane) {
        mantissa *= static_cast<double>(mantissas[lane]);
        exponent += exponents[lane];
      }
      int64_t carry;
      mantissa = split_mantissa(mantissa, &carry);
      exponent += carry;
    }
    return linear.total() + std::fma(static_cast<double>(exponent), Constants<double>::kLn2, log_normal(mantissa));
  }
};

// Hands on the sum of one chunk of sample s: to be added to others or, where one chunk is all, as the result.
template <typename acc_t>
void hand_on(double sum, int64_t s, const Piece& piece, const TileSums& sums) {
  if (sums.partials) {
    sums.partials[s * sums.num_tiles + piece.first / kChunkSize] = sum;
  } else {
    static_cast<acc_t*>(sums.results)[s] = static_cast<acc_t>(sum);
  }
}

// sigma, and with kLogProb the sum of log sigma: of a finite rho, or with kInfinite of any.
template <typename acc_t, bool kLogProb, bool kInfinite = false>
double softplus_piece(const acc_t* __restrict rho, int64_t count, acc_t* __restrict sigma) {
  LogSum<acc_t> sum;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Softplus<acc_t> s = softplus(rho[first + lane]);
      sigma[first + lane] = s.sigma;
      if constexpr (kLogProb) sum.add(lane, s.factor, kInfinite ? linear_log_sigma(rho[first + lane]) : s.linear);
    }
  });
  return kLogProb ? sum.total(count) : 0;
}

// sigma and its derivatives.
template <typename acc_t>
void softplus_backward_piece(const acc_t* __restrict rho, int64_t count, acc_t* __restrict sigma,
                             acc_t* __restrict dsigma, acc_t* __restrict h) {
  for (int64_t i = 0; i < count; ++i) {
    const Softplus<acc_t> s = softplus(rho[i]);
    const acc_t h_i = log_sigma_derivative(s);
    sigma[i] = s.sigma;
    dsigma[i] = sigmoid(rho[i], s.sigma, h_i);
    h[i] = h_i;
  }
}

ILLIA_NAMESPACE_END
