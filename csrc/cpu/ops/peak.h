// What this machine can do at most, measured: dot steps on operands that never leave the registers,
// and reading memory. The denominators of every "fraction of the limit".
#pragma once

#include "common/types.h"

namespace fastbert {

struct PeakKernels {
    // Runs `rounds` rounds of independent dot steps and returns the multiply-adds they amount to
    // (two operations each). `sink` receives something computed from all of them.
    using StepsFn = double (*)(index_t rounds, void* sink);
    StepsFn f32, bf16, s8;
};

// Operations (multiplications and additions) per second of the gemm's inner step for weights
// packed as dtype (f32, bf16, s8), `threads` threads at once, each its best of `repeats` runs of
// about a millisecond. std::invalid_argument for other types or no threads.
double dot_peak(DType dtype, int threads, int repeats);

// Bytes per second that `threads` threads read from memory together: the best of `repeats` passes
// over 32 MiB that no cache holds.
double memory_peak(int threads, int repeats);

}  // namespace fastbert
