// Digests of bits, and their comparison with tests/data/golden_bits.txt.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <type_traits>
#include <vector>

namespace illia {

// 64-bit FNV-1a over bytes, the lowest first on every machine. All NaN count as one: IEEE 754 leaves their bits open.
class Digest {
 public:
  template <typename value_t>
  Digest& add(value_t value) {
    uint64_t bits = 0;
    if constexpr (std::is_floating_point_v<value_t>) {
      using uint_t = std::conditional_t<sizeof(value_t) == 4, uint32_t, uint64_t>;
      uint_t word;
      static_assert(sizeof(word) == sizeof(value));
      __builtin_memcpy(&word, &value, sizeof(word));
      bits = value != value ? uint64_t{0x7FF8} : word;
    } else {
      bits = static_cast<uint64_t>(value);
    }
    for (size_t byte = 0; byte < sizeof(value_t); ++byte) hash_ = (hash_ ^ (bits >> (8 * byte) & 0xFF)) * 0x100000001B3;
    return *this;
  }

  std::string text() const {
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016" PRIx64, hash_);
    return digits;
  }

 private:
  uint64_t hash_ = 0xCBF29CE484222325;
};

// "name value" each.
using Lines = std::vector<std::string>;

// Where the file's lines that begin with `prefix` are not these: how many, each printed.
inline int differences(const char* path, const std::string& prefix, const Lines& lines) {
  std::ifstream file(path);
  Lines expected;
  for (std::string line; std::getline(file, line);)
    if (line.compare(0, prefix.size(), prefix) == 0) expected.push_back(line);
  int count = expected.size() != lines.size();
  if (count) std::fprintf(stderr, "%zu lines of %s, expected %zu\n", lines.size(), prefix.c_str(), expected.size());
  for (size_t i = 0; i < lines.size() && i < expected.size(); ++i) {
    if (lines[i] == expected[i]) continue;
    ++count;
    std::fprintf(stderr, "%s\n  expected %s\n", lines[i].c_str(), expected[i].c_str());
  }
  return count;
}

// Without an argument the program prints its lines; with one, a file's path, it returns 1 where they differ.
inline int print_or_compare(int argc, char** argv, const std::string& prefix, const Lines& lines) {
  if (argc > 1) return differences(argv[1], prefix, lines) > 0;
  for (const std::string& line : lines) std::puts(line.c_str());
  return 0;
}

}  // namespace illia
