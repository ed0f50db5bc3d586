// Words of the noise to standard output, raw and without end, for a battery of tests.
//   words blocks SEED   the blocks of one key, as a sample of a large tensor takes them
//   words seeds SEED    the first block of each of the consecutive seeds SEED, SEED + 1, ...
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/philox.h"

using namespace illia::ILLIA_CAPABILITY;

int main(int count, char** arguments) {
  const bool seeds = count == 3 && std::strcmp(arguments[1], "seeds") == 0;
  if (!seeds && (count != 3 || std::strcmp(arguments[1], "blocks") != 0)) {
    std::fputs("expected blocks SEED or seeds SEED\n", stderr);
    return 2;
  }
  const uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
  constexpr int kBlocks = 4096;
  static uint32_t words[kBlocks][4];
  for (uint64_t first = 0;; first += kBlocks) {
    for (int i = 0; i < kBlocks; ++i) {
      const uint64_t at = first + i;
      const auto block = seeds ? philox4x32<uint64_t>(seed + at, 0) : philox4x32<uint64_t>(seed, at);
      for (int j = 0; j < 4; ++j) words[i][j] = block.word(j);
    }
    if (std::fwrite(words, sizeof(words), 1, stdout) != 1) return 0;  // the reader has enough
  }
}
