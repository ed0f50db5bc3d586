// The two variants of a kernel over tiles. The plain one draws a tensor that is one row of the stream, from a Philox
// block on, against one prior, by vectors. The general one does what `General` asks for besides: it learns that at run
// time, moves single elements and takes few of them a thread, so that it costs little code and the plain one nothing.
#pragma once

#include "cuda/reduce.cuh"

namespace illia {
namespace cuda {

struct Plain {
  bool aligned;              // all memory may be accessed by vectors
  bool antithetic = false;   // as General has it
  uint64_t first_block = 0;  // of the tensor, in the stream of a key
};

template <typename variant_t>
constexpr bool kIsGeneral = std::is_same_v<variant_t, General>;

// Of sample s. Antithetic samples are pairs: the second has the first one's key, and -eps.
template <typename variant_t>
__device__ __forceinline__ bool is_negated(const variant_t& variant, int64_t s) {
  return s & variant.antithetic;
}

template <typename args_t, typename variant_t>
__device__ __forceinline__ const Key& key_of(const args_t& args, const variant_t& variant, int64_t s) {
  return args.keys[s & ~int64_t{variant.antithetic}];
}

// A thread's elements are as many as the normals of a Philox block, and follow each other.
template <typename scalar_t>
struct GeneralTile : Tile<scalar_t, 1, false, kNormalsPerBlock<AccType<scalar_t>>> {
  using Base = Tile<scalar_t, 1, false, kNormalsPerBlock<AccType<scalar_t>>>;
  using Base::first, Base::kWidth;
  using typename Base::acc_t;
  using Words = Key;  // drawn from where it is used

  const Block& block;

  __device__ GeneralTile(int64_t index, int64_t numel, const Block& block) : Base(index, numel), block(block) {}

  __device__ __forceinline__ static Words words(const Key& key) { return key; }

  // A new Philox block wherever the elements' places leave that of the element before.
  __device__ __forceinline__ void normals(const Key& key, int, acc_t (&eps)[kWidth]) const {
    acc_t drawn[kWidth] = {};
    ILLIA_UNROLL
    for (acc_t& value : eps) value = 0;
    uint64_t place = 0;
    int64_t left_in_row = 0;
    ILLIA_KEEP_LOOP
    for (int k = 0; k < kWidth; ++k, ++place, --left_in_row) {
      const bool begins = left_in_row == 0;
      if (begins) {
        place = static_cast<uint64_t>(block.place(first + k));
        left_in_row = block.is_one_row() ? kWidth : block.row_size - (first + k) % block.row_size;
      }
      if (begins || place % kWidth == 0)
        block_normals(philox4x32<uint32_t>(key.seed, key.offset + place / kWidth), drawn);
      // No index may vary, or eps and drawn could not stay in registers: eps moves on by one an element, and the bits
      // of the place halve what is left of drawn.
      acc_t chosen[kWidth];
      ILLIA_UNROLL
      for (int n = 0; n < kWidth; ++n) chosen[n] = drawn[n];
      ILLIA_UNROLL
      for (int half = kWidth / 2; half > 0; half /= 2) {
        ILLIA_UNROLL
        for (int n = 0; n < half; ++n) chosen[n] = place & half ? chosen[n + half] : chosen[n];
      }
      ILLIA_UNROLL
      for (int n = 1; n < kWidth; ++n) eps[n - 1] = eps[n];
      eps[kWidth - 1] = chosen[0];
    }
  }
};

// The tile that a variant of a kernel takes; the plain one when it is full.
template <template <typename, bool> class plain_t, typename scalar_t, typename variant_t>
using TileOf = std::conditional_t<kIsGeneral<variant_t>, GeneralTile<scalar_t>, plain_t<scalar_t, true>>;

// function(tile) for one tile of a tensor without rare features.
template <template <typename, bool> class tile_t, typename scalar_t, typename function_t>
__device__ __forceinline__ void with_tile(int64_t index, int64_t numel, const Plain& plain, function_t function) {
  using Full = tile_t<scalar_t, true>;
  using Part = tile_t<scalar_t, false>;
  if (plain.aligned && (index + 1) * Full::kSize <= numel) {
    function(Full(index, numel, plain.first_block));
  } else {
    function(Part(index, numel, plain.first_block));
  }
}

// The same for the general variant.
template <template <typename, bool> class tile_t, typename scalar_t, typename function_t>
__device__ __forceinline__ void with_tile(int64_t index, int64_t numel, const General& general, function_t function) {
  function(GeneralTile<scalar_t>(index, numel, general.block));
}

// function(tile, index) for each tile that falls to this block.
template <template <typename, bool> class tile_t, typename scalar_t, typename function_t>
__device__ __forceinline__ void for_each_tile(int64_t numel, const Plain& plain, function_t function) {
  for (int64_t index = blockIdx.x; index * tile_t<scalar_t, true>::kSize < numel; index += gridDim.x)
    with_tile<tile_t, scalar_t>(index, numel, plain, [&](const auto& tile) { function(tile, index); });
}

template <template <typename, bool> class tile_t, typename scalar_t, typename function_t>
__device__ __forceinline__ void for_each_tile(int64_t numel, const General& general, function_t function) {
  for (int64_t index = blockIdx.x; index * GeneralTile<scalar_t>::kSize < numel; index += gridDim.x)
    with_tile<tile_t, scalar_t>(index, numel, general, [&](const auto& tile) { function(tile, index); });
}

// The one prior of all elements, as a tile asks for it.
template <typename acc_t>
struct OnePrior {
  const Prior<acc_t>& prior;
  NormalFamily<acc_t> family{};

  __device__ __forceinline__ const Prior<acc_t>& operator[](int) const { return prior; }

  // grad / std_prior, which is `of_one` for the prior of all.
  __device__ __forceinline__ acc_t scale(int, acc_t, acc_t of_one) const { return of_one; }
};

template <typename tile_t, typename acc_t>
__device__ __forceinline__ OnePrior<acc_t> priors_of(const tile_t&, const Plain&, const Prior<acc_t>& one) {
  return {one};
}

// The priors of a thread's elements.
template <typename acc_t, int kCount>
struct Priors {
  ElementPrior<acc_t> priors[kCount];
  bool each;
  AnyFamily<acc_t> family;

  __device__ __forceinline__ const ElementPrior<acc_t>& operator[](int i) const { return priors[i]; }

  __device__ __forceinline__ acc_t scale(int i, acc_t grad, acc_t of_one) const {
    return each ? priors[i].scale(grad) : of_one;
  }
};

template <typename tile_t, typename acc_t>
__device__ __forceinline__ auto priors_of(const tile_t& tile, const General& general, const Prior<acc_t>& one) {
  constexpr int kCount = tile_t::kCount;
  Priors<acc_t, kCount> result;
  result.each = general.std_prior != nullptr;
  result.family = AnyFamily<acc_t>::make(general.family);
  acc_t mu[kCount], std[kCount];
  tile.load(static_cast<const acc_t*>(general.mu_prior), mu, result.each);
  tile.load(static_cast<const acc_t*>(general.std_prior), std, result.each);
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i)
    result.priors[i] =
        result.each ? ElementPrior<acc_t>::make(mu[i], std[i]) : ElementPrior<acc_t>{one.mu, one.inverse_std};
  return result;
}

// A thread's sum of what the family adds for each element and, where each element has its own, of log std_prior.
template <typename tile_t>
__device__ __forceinline__ double log_std_sum(const tile_t&, const Plain&) {
  return 0;
}

template <typename tile_t>
__device__ __forceinline__ double log_std_sum(const tile_t& tile, const General& general) {
  using acc_t = typename tile_t::acc_t;
  const double constants = tile.count() * general.family.constant;
  if (general.std_prior == nullptr) return constants;
  acc_t std[tile_t::kCount];
  tile.load(static_cast<const acc_t*>(general.std_prior), std);
  LogSum<acc_t> sum;
  ILLIA_UNROLL
  for (int i = 0; i < tile_t::kCount; ++i)
    if (tile.holds(i)) sum.add(log_std_parts(std[i]));
  return sum.total(tile.count()) + constants;
}

// Gradients to the priors of a thread's elements, summed over the samples.
template <typename tile_t>
struct PriorGradSums {
  using acc_t = typename tile_t::acc_t;
  acc_t mu[tile_t::kCount] = {}, std[tile_t::kCount] = {};

  __device__ __forceinline__ void add(int i, acc_t grad, acc_t slope, acc_t squares) {
    const ElementPriorGrads<acc_t> grads = element_prior_grads(grad, slope, squares);
    mu[i] += grads.mu;
    std[i] += grads.std;
  }

  // Stores them, or this tile's sums of them.
  template <typename priors_t>
  __device__ __forceinline__ void hand_on(const tile_t& tile, const priors_t& priors, const General& general,
                                          int64_t index, BlockSum<kThreads>& block_sum) {
    double mu_sum = 0, std_sum = 0;
    ILLIA_UNROLL
    for (int i = 0; i < tile_t::kCount; ++i) {
      mu[i] *= priors[i].inverse_std;
      std[i] *= priors[i].inverse_std;
      if (tile.holds(i)) mu_sum += static_cast<double>(mu[i]), std_sum += static_cast<double>(std[i]);
    }
    tile.store(static_cast<acc_t*>(general.mu_prior_grad.each), mu);
    tile.store(static_cast<acc_t*>(general.std_prior_grad.each), std);
    if (general.prior_partials == nullptr) return;
    const int64_t num_tiles = tile_t::cover(tile.numel);
    mu_sum = block_sum(mu_sum);
    std_sum = block_sum(std_sum);
    if (threadIdx.x != 0) return;
    general.prior_partials[index] = mu_sum;
    general.prior_partials[num_tiles + index] = std_sum;
  }
};

}  // namespace cuda
}  // namespace illia
