// The 16-bit conversions, and blocks of larger tensors. Prints each check that failed, and then returns 1.
#include "cpu/storage.h"

#include <limits>
#include <vector>

#include "check.h"
#include "ops/block.h"

namespace illia {
namespace base {
namespace {

// Every place of a block, and how few dimensions tell it.
void test_block(const std::vector<int64_t>& sizes, const std::vector<int64_t>& full_sizes,
                const std::vector<int64_t>& origin, int num_dims, int64_t row_size) {
  const std::optional<Block> block = make_block(sizes, full_sizes, origin);
  ILLIA_CHECK_EQUAL(block.has_value(), true);
  ILLIA_CHECK_EQUAL(block->num_dims, num_dims);
  ILLIA_CHECK_EQUAL(block->row_size, row_size);
  int64_t numel = 1;
  for (int64_t size : sizes) numel *= size;
  for (int64_t i = 0; i < numel; ++i) {
    int64_t place = 0, rest = i, stride = 1;
    for (size_t dim = sizes.size(); dim-- > 0; stride *= full_sizes[dim]) {
      place += (origin[dim] + rest % sizes[dim]) * stride;
      rest /= sizes[dim];
    }
    ILLIA_CHECK_EQUAL(block->place(i), place);
  }
}

void test_blocks() {
  test_block({}, {}, {}, 0, 1);
  test_block({1, 1}, {7, 9}, {3, 4}, 0, 1);
  test_block({3, 5, 6}, {7, 5, 6}, {2, 0, 0}, 0, 90);
  test_block({1, 1, 4}, {7, 5, 6}, {2, 3, 1}, 0, 4);
  test_block({3, 2, 6}, {7, 5, 6}, {2, 1, 0}, 1, 12);
  test_block({3, 5, 2}, {7, 5, 6}, {2, 0, 3}, 1, 2);
  test_block({3, 5, 1}, {7, 5, 6}, {2, 0, 3}, 1, 1);
  test_block({3, 2, 4}, {7, 5, 6}, {2, 1, 2}, 2, 4);
  test_block({2, 1, 2, 1, 2}, {3, 3, 3, 3, 3}, {1, 2, 0, 1, 1}, 2, 2);
  test_block(std::vector<int64_t>(9, 2), std::vector<int64_t>(9, 3), std::vector<int64_t>(9, 1), 8, 2);
  const std::vector<int64_t> ten(10, 2), of(10, 3), at(10, 0);
  ILLIA_CHECK_EQUAL(make_block(ten, of, at).has_value(), false);
  ILLIA_CHECK_EQUAL(make_block({2, 0}, {9, 9}, {1, 9})->is_one_row(), true);
}

struct ShortFormat {
  int mantissa_bits, bias;
  uint16_t infinity;
  float (*to_float)(uint16_t);
  uint16_t (*from_float)(float);

  // The magnitude's value by its definition; that of `infinity` is the number next to the largest.
  double value(int magnitude) const {
    const int exponent = magnitude >> mantissa_bits, mantissa = magnitude & ((1 << mantissa_bits) - 1);
    const int hidden_bit = exponent == 0 ? 0 : 1 << mantissa_bits;
    return std::ldexp(hidden_bit + mantissa, (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
  }
};

void test_short_format(const ShortFormat& format) {
  for (int sign : {0, 0x8000}) {
    const double signed_one = sign ? -1 : 1;
    for (int magnitude = 0; magnitude < format.infinity; ++magnitude) {
      const double value = format.value(magnitude), next = format.value(magnitude + 1);
      const float middle = static_cast<float>(signed_one * (value + next) / 2);
      const int even = magnitude + magnitude % 2;
      ILLIA_CHECK_EQUAL(format.to_float(sign | magnitude), signed_one * value);
      ILLIA_CHECK_EQUAL(format.from_float(static_cast<float>(signed_one * value)), sign | magnitude);
      ILLIA_CHECK_EQUAL(format.from_float(middle), sign | even);
      ILLIA_CHECK_EQUAL(format.from_float(std::nextafter(middle, 0.0f)), sign | magnitude);
      ILLIA_CHECK_EQUAL(format.from_float(std::nextafter(middle, 2 * middle)), sign | (magnitude + 1));
    }
    const double infinity = signed_one * std::numeric_limits<double>::infinity();
    const double largest = std::numeric_limits<float>::max();
    ILLIA_CHECK_EQUAL(format.to_float(sign | format.infinity), infinity);
    for (double large :
         {infinity, signed_one * largest, signed_one * std::fmin(1.5 * format.value(format.infinity), largest)})
      ILLIA_CHECK_EQUAL(format.from_float(static_cast<float>(large)), sign | format.infinity);
    for (int nan = format.infinity + 1; nan < 0x8000; ++nan)
      ILLIA_CHECK_EQUAL(std::isnan(format.to_float(sign | nan)), true);
    for (uint32_t nan : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu})
      ILLIA_CHECK_EQUAL((format.from_float(bit_cast<float>(nan | sign << 16)) & 0x7FFF) > format.infinity, true);
  }
}

}  // namespace
}  // namespace base
}  // namespace illia

int main() {
  using namespace illia::base;
  test_blocks();
  test_short_format({10, 15, 0x7C00, half_to_float, float_to_half});
  test_short_format({7, 127, 0x7F80, bfloat16_to_float, float_to_bfloat16});
  std::cerr << failures << " checks of conversions and blocks failed\n";
  return failures > 0;
}
