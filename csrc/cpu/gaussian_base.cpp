// What the compiler's default target offers: NEON on aarch64, SSE2 on x86-64 (with fma from the C library).
#include "cpu/gaussian_kernel.h"
