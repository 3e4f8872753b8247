#include "cpu/ops/peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/aligned_bytes.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace fastbert {
namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void check_counts(const char* op, int threads, int repeats) {
    if (threads < 1 || repeats < 1) fail(op, "threads and repeats must be at least 1.");
}

}  // namespace

double dot_peak(DType dtype, int threads, int repeats) {
    check_counts("dot_peak", threads, repeats);
    const PeakKernels& peak = active_kernels().peak;
    const auto steps = dtype == DType::f32    ? peak.f32
                       : dtype == DType::bf16 ? peak.bf16
                       : dtype == DType::s8   ? peak.s8
                                              : nullptr;
    if (steps == nullptr) {
        fail("dot_peak",
             std::string("gemms are float32, bfloat16 or int8, not ") + name_of(dtype) + ".");
    }
    std::vector<double> best(static_cast<std::size_t>(threads), 0.0);
    parallel_for(threads, threads, [&](index_t task, int) {
        std::uint8_t sink[64];
        index_t rounds = 1000;
        for (int i = 0; i < repeats; ++i) {
            const double start = seconds();
            const double multiplied = steps(rounds, sink);
            const double time = seconds() - start;
            double& rate = best[static_cast<std::size_t>(task)];
            rate = std::max(rate, 2 * multiplied / time);
            if (time < 5e-4) rounds *= 2;
        }
    });
    double total = 0;
    for (double rate : best) total += rate;
    return total;
}

double memory_peak(int threads, int repeats) {
    check_counts("memory_peak", threads, repeats);
    // Passes of 32 MiB, short enough to escape other programs now and then, over eight parts in
    // turn: each is read again only after 224 MiB of others.
    constexpr index_t words = index_t{4} << 20;
    constexpr index_t parts = 8;
    // Written first: pages never touched would all be the same page of zeros.
    AlignedBytes memory;
    memory.reserve(words * parts * index_t{sizeof(std::uint64_t)});
    auto* const data = reinterpret_cast<std::uint64_t*>(memory.data());
    std::fill(data, data + words * parts, 1);
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads), 0);
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        const std::uint64_t* part = data + i % parts * words;
        const double start = seconds();
        parallel_for(threads, threads, [&](index_t task, int) {
            // One word of every cache line: the line's journey is the cost.
            std::uint64_t sum = 0;
            const index_t end = words * (task + 1) / threads;
            for (index_t w = words * task / threads; w < end; w += 8) sum += part[w];
            sums[static_cast<std::size_t>(task)] += sum;
        });
        best = std::max(best, static_cast<double>(words) * 8 / (seconds() - start));
    }
    return sums[0] == 0 ? 0 : best;
}

}  // namespace fastbert
