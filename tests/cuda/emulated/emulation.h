// Enough of CUDA's execution model to run kernels on the CPU, one block at a time: every thread of
// the block is a fibre that runs until it has to wait for others. What the threads do between two
// such points happens in whatever order the scheduler picks (FASTBERT_EMULATION_SEED: 0 runs them
// in order, anything else shuffles them anew every round and slows one warp down), so a missing
// synchronisation shows up as a wrong result for some seed; it says nothing about the ordering of
// single memory accesses.
//
// Asynchronous copies land as late as they may: when every thread waits. What is written
// asynchronously, or never was, is NaN (all bits set). Anything CUDA leaves undefined throws.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <setjmp.h>
#include <ucontext.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace emulation {

[[noreturn]] inline void fail(const std::string& what);

struct Index {
    unsigned x = 0, y = 0, z = 0;
};
inline Index thread_index, block_index, block_size, grid_size;

// --- Fibres --------------------------------------------------------------------------------------

struct Fibre {
    ucontext_t first;
    jmp_buf here;
    std::unique_ptr<char[]> stack;
    bool started = false, done = false;
};
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler_first;
inline jmp_buf scheduler;
inline const std::function<void()>* body;
inline std::exception_ptr failure;
inline int alive;
// Whether anything happened since the scheduler last looked.
inline bool moved;

// Back to the scheduler. setjmp and longjmp, because swapcontext is a system call.
__attribute__((noinline)) inline void give_way() {
    if (_setjmp(fibres[thread_index.x].here) == 0) _longjmp(scheduler, 1);
}

template <typename Condition>
void wait_until(Condition condition) {
    while (!condition()) give_way();
    moved = true;
}

inline void run_body() {
    try {
        (*body)();
    } catch (...) {
        if (!failure) failure = std::current_exception();
    }
    fibres[thread_index.x].done = true;
    --alive;
    moved = true;
    _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void resume(int t) {
    Fibre& fibre = fibres[t];
    thread_index.x = static_cast<unsigned>(t);
    if (_setjmp(scheduler) != 0) return;
    if (fibre.started) _longjmp(fibre.here, 1);
    fibre.started = true;
    swapcontext(&scheduler_first, &fibre.first);
}

[[noreturn]] inline void fail(const std::string& what) {
    throw std::runtime_error("block " + std::to_string(block_index.x) + ", " +
                             std::to_string(block_index.y) + ", thread " +
                             std::to_string(thread_index.x) + ": " + what);
}

// --- Where threads meet --------------------------------------------------------------------------

// Threads that arrive one by one with an argument each; the last does the work of all.
struct Meeting {
    int arrived = 0;
    unsigned generation = 0;
    const char* what = nullptr;
    void* argument[128];

    template <typename Work>
    void meet(int size, int place, const char* name, void* mine, Work work) {
        if (arrived == 0) what = name;
        if (std::strcmp(what, name) != 0) {
            fail(std::string("meets at ") + name + " threads that are at " + what);
        }
        argument[place] = mine;
        if (++arrived == size) {
            work(argument);
            arrived = 0;
            ++generation;
            moved = true;
        } else {
            const unsigned before = generation;
            wait_until([&] { return generation != before; });
        }
    }
};

struct Gathering {  // as Meeting, for threads that bring nothing
    int arrived = 0;
    unsigned generation = 0;

    template <typename Size>
    void join(Size size) {
        ++arrived;
        const unsigned before = generation;
        wait_until([&] {
            if (generation == before && arrived >= size()) {
                arrived = 0;
                ++generation;
            }
            return generation != before;
        });
    }
};

inline std::vector<Meeting> warps;
inline std::vector<Meeting> warpgroups;
inline Gathering barriers[16];

inline int lane() { return static_cast<int>(thread_index.x % 32); }

template <typename Work>
void in_warp(const char* name, void* mine, Work work) {
    if ((thread_index.x / 32 + 1) * 32 > block_size.x) fail("is in a warp that is not whole");
    warps[thread_index.x / 32].meet(32, lane(), name, mine, work);
}

inline void meet() {
    barriers[0].join([] { return alive; });
}

template <typename T>
T shuffle_xor(T value, int mask) {
    struct Exchange {
        T in, out;
        int mask;
    } mine{value, value, mask};
    in_warp("shfl", &mine, [](void** all) {
        for (int l = 0; l < 32; ++l) {
            auto* one = static_cast<Exchange*>(all[l]);
            one->out = static_cast<Exchange*>(all[l ^ one->mask])->in;
        }
    });
    return mine.out;
}

template <typename T>
T shuffle_from(T value, int source) {
    struct Exchange {
        T in, out;
        int source;
    } mine{value, value, source};
    in_warp("shfl", &mine, [](void** all) {
        for (int l = 0; l < 32; ++l) {
            auto* one = static_cast<Exchange*>(all[l]);
            one->out = static_cast<Exchange*>(all[one->source & 31])->in;
        }
    });
    return mine.out;
}

template <typename T>
T shuffle_up(T value, unsigned distance) {
    const int from = lane() - static_cast<int>(distance);
    return shuffle_from(value, from < 0 ? lane() : from);
}

inline unsigned ballot(bool vote) {
    struct Vote {
        bool in;
        unsigned out;
    } mine{vote, 0};
    in_warp("ballot", &mine, [](void** all) {
        unsigned bits = 0;
        for (int l = 0; l < 32; ++l) bits |= unsigned{static_cast<Vote*>(all[l])->in} << l;
        for (int l = 0; l < 32; ++l) static_cast<Vote*>(all[l])->out = bits;
    });
    return mine.out;
}

inline void meet_warp() {
    in_warp("syncwarp", nullptr, [](void**) {});
}

// --- Launching -----------------------------------------------------------------------------------

// What instructions keep beside the threads; they add themselves before the first launch.
struct Machine {
    virtual ~Machine() = default;
    virtual void begin_block(int threads, int shared_bytes) = 0;
    virtual bool land_one() { return false; }  // one asynchronous copy, if there is one
    virtual void end_block() = 0;
};
inline std::vector<Machine*> machines;

inline bool land_one() {
    for (Machine* machine : machines) {
        if (machine->land_one()) return true;
    }
    return false;
}

inline void launch(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
    constexpr std::size_t stack_bytes = 64 * 1024;
    const char* given = std::getenv("FASTBERT_EMULATION_SEED");
    const unsigned seed = given == nullptr ? 0 : static_cast<unsigned>(std::atoi(given));
    std::mt19937 random(seed);
    body = &kernel;
    block_size = {static_cast<unsigned>(threads), 1, 1};
    grid_size = {grid.x, grid.y, grid.z};
    fibres.clear();
    fibres.resize(threads);
    for (Fibre& fibre : fibres) fibre.stack = std::make_unique<char[]>(stack_bytes);
    std::vector<int> order(threads);
    for (int t = 0; t < threads; ++t) order[t] = t;
    for (unsigned block = 0; block < grid.x * grid.y * grid.z; ++block) {
        block_index = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
        for (Fibre& fibre : fibres) {
            getcontext(&fibre.first);
            fibre.first.uc_stack.ss_sp = fibre.stack.get();
            fibre.first.uc_stack.ss_size = stack_bytes;
            fibre.first.uc_link = nullptr;
            makecontext(&fibre.first, run_body, 0);
            fibre.started = fibre.done = false;
        }
        alive = threads;
        failure = nullptr;
        warps.assign((threads + 31) / 32, Meeting{});
        warpgroups.assign((threads + 127) / 128, Meeting{});
        for (Gathering& barrier : barriers) barrier = Gathering{};
        for (Machine* machine : machines) machine->begin_block(threads, shared_bytes);
        // One warp of each block is slow, unless nobody else can go on.
        const int slow = seed == 0 ? -1 : static_cast<int>(random() % ((threads + 31) / 32));
        moved = false;
        while (alive > 0 && !failure) {
            const bool hold = seed != 0 && moved && random() % 32 != 0;
            moved = false;
            if (seed != 0) {
                std::shuffle(order.begin(), order.end(), random);
                if (random() % 8 == 0) land_one();
            }
            for (const int t : order) {
                if (!fibres[t].done && !(hold && t / 32 == slow)) resume(t);
                if (failure) break;
            }
            if (moved || hold || failure || alive == 0) continue;
            if (!land_one()) {
                thread_index.x = 0;
                while (fibres[thread_index.x].done) ++thread_index.x;
                fail("waits, and so does every other thread, for what will never happen");
            }
        }
        if (failure) std::rethrow_exception(failure);
        for (Machine* machine : machines) machine->end_block();
    }
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
#define FASTBERT_EMULATE_LAUNCH emulation::launch
#define __syncthreads emulation::meet
#define __syncwarp emulation::meet_warp
#define __shfl_xor_sync(mask, value, lanes) emulation::shuffle_xor(value, lanes)
#define __shfl_sync(mask, value, source) emulation::shuffle_from(value, source)
#define __shfl_up_sync(mask, value, distance) emulation::shuffle_up(value, distance)
#define __ballot_sync(mask, vote) emulation::ballot(vote)

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __fdiv_rn(float a, float b) { return a / b; }
// The machine's gives 0 where the divisor is beyond 2^126.
inline float __fdividef(float a, float b) {
    return fabsf(b) > 8.5e37f && fabsf(b) < INFINITY ? 0.0f : a / b;
}

// Byte i of the result is the one that nibble i of the selector names, of b (4 to 7) and a.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned from = selector >> 4 * i & 7;
        out |= ((from < 4 ? a : b) >> 8 * (from & 3) & 0xff) << 8 * i;
    }
    return out;
}

inline float __int_as_float(int bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
