// Enough of CUDA's execution model to run the row kernels on the CPU, one block at a time: every
// thread of the block is a fibre, and each synchronisation hands over to the next. That is faithful
// for kernels whose threads all meet the same synchronisations, which shuffles and barriers over a
// whole block demand anyway; it says nothing about memory ordering or races.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <ucontext.h>
#include <vector_types.h>

#include <cstring>
#include <functional>
#include <vector>

#undef __shared__
#define __shared__ static

namespace emulation {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};
inline Index thread_index, block_index, block_size, grid_size;
inline std::vector<ucontext_t> fibres;
inline ucontext_t scheduler;
inline std::vector<float> exchanged;
inline const std::function<void()>* body;
inline bool finished;  // whether the fibre that ran last came to its end

// Every other fibre reaches its own next synchronisation before this one goes on.
inline void meet() {
    finished = false;
    swapcontext(&fibres[thread_index.x], &scheduler);
}

inline float shuffle_xor(float value, int mask) {
    exchanged[thread_index.x] = value;
    meet();
    const float other = exchanged[thread_index.x ^ static_cast<unsigned>(mask)];
    meet();
    return other;
}

inline void run_body() { (*body)(); }

inline void launch(dim3 grid, int threads, const std::function<void()>& kernel) {
    constexpr std::size_t stack_bytes = 64 * 1024;
    std::vector<std::vector<char>> stacks(threads, std::vector<char>(stack_bytes));
    fibres.assign(threads, ucontext_t{});
    exchanged.assign(threads, 0.0f);
    body = &kernel;
    block_size = {static_cast<unsigned>(threads), 1, 1};
    grid_size = {grid.x, grid.y, grid.z};
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            block_index = {x, y, 0};
            for (int t = 0; t < threads; ++t) {
                getcontext(&fibres[t]);
                fibres[t].uc_stack.ss_sp = stacks[t].data();
                fibres[t].uc_stack.ss_size = stack_bytes;
                fibres[t].uc_link = &scheduler;
                makecontext(&fibres[t], run_body, 0);
            }
            std::vector<bool> done(threads, false);
            for (int left = threads; left > 0;) {
                for (int t = 0; t < threads; ++t) {
                    if (done[t]) continue;
                    thread_index.x = static_cast<unsigned>(t);
                    finished = true;
                    swapcontext(&scheduler, &fibres[t]);
                    if (finished) {
                        done[t] = true;
                        --left;
                    }
                }
            }
        }
    }
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
#define FASTBERT_EMULATE_LAUNCH emulation::launch
#define __syncthreads emulation::meet
#define __shfl_xor_sync(mask, value, lanes) emulation::shuffle_xor(value, lanes)

inline float __fdiv_rn(float a, float b) { return a / b; }

inline float __int_as_float(int bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
