// A fault on purpose, for valgrind: whether it prints depends on memory that nobody wrote.
#include <cstdio>
#include <memory>

int main() {
  const std::unique_ptr<float[]> unwritten(new float[64]);
  if (unwritten[7] > 1) std::puts("large");
}
