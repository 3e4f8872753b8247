// How blocks that stay on their multiprocessors divide ragged work among themselves.
//
// An item is 64 queries of one head of one sequence; it costs its blocks of keys, plus one for its
// start and end. Items in order (sequence, head, queries) form a line of cost, cut into equal
// parts: a block does the items that start in its part. So no block has more than its even part and
// one item, however lengths differ, and neighbours on the line share keys and values. Only offsets
// that are on the device decide; the host is never waited for.
#pragma once

#include <climits>

#include "cuda/attention/fold.cuh"

namespace fastbert::cuda {

__device__ inline int tiles_of(const Extent& e) {
    return (e.len_q + attention_rows - 1) / attention_rows;
}
__device__ inline int item_cost(const Extent& e) {
    return (e.len_k + keys_sm90 - 1) / keys_sm90 + 1;
}

// What is left of a block's part of the line: its next item, and the cost from there to the end.
// Items that start before the end are the block's.
struct Share {
    int left;
    int item;  // head * tiles + tile
    Extent extent;

    __device__ bool any() const { return left > 0; }
    __device__ int head() const { return item / tiles_of(extent); }
    __device__ int tile() const { return item % tiles_of(extent); }

    __device__ void advance(const AttentionVarlen& args, int items) {
        for (;;) {
            const int rest = args.heads * tiles_of(extent) - item;
            const int step = min(items, rest);
            left -= step * item_cost(extent);
            item += step;
            items -= step;
            if (step < rest) return;
            item = 0;
            // Also past sequences with no items.
            if (extent.sequence + 1 == args.batch) {
                left = 0;
                return;
            }
            extent = extent_of(args, extent.sequence + 1);
        }
    }
};

// Finds the share of this block. Every thread of the block calls it; `memory` is 256 bytes of
// shared memory that nobody uses yet.
__device__ inline Share find_share(const AttentionVarlen& args, unsigned char* memory) {
    auto* const warp_sums = reinterpret_cast<index_t*>(memory);    // up to 16 warps
    auto* const start = reinterpret_cast<index_t*>(memory + 128);  // cost before, sequence
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    const int each = (args.batch + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    const int first = min(thread * each, args.batch), last = min(first + each, args.batch);
    const auto cost_of = [&](int sequence) {
        const Extent e = extent_of(args, sequence);
        return static_cast<index_t>(args.heads) * tiles_of(e) * item_cost(e);
    };
    index_t sum = 0;
    for (int b = first; b < last; ++b) sum += cost_of(b);
    index_t before = sum;  // inclusive, then of the lanes before
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const index_t other = __shfl_up_sync(full_mask, before, step);
        if (lane >= step) before += other;
    }
    if (lane == 31) warp_sums[thread / 32] = before;
    if (thread == 0) start[1] = -1;
    __syncthreads();
    before -= sum;
    index_t total = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
        if (warp < thread / 32) before += warp_sums[warp];
        total += warp_sums[warp];
    }
    const index_t blocks = static_cast<index_t>(gridDim.x);
    const index_t low = total * blockIdx.x / blocks, high = total * (blockIdx.x + 1) / blocks;
    if (before <= low && low < before + sum) {
        int b = first;
        for (index_t cost = cost_of(b); before + cost <= low; cost = cost_of(b)) {
            before += cost;
            ++b;
        }
        start[0] = before;
        start[1] = b;
    }
    __syncthreads();
    Share share{};
    const int sequence = static_cast<int>(start[1]);
    if (sequence < 0 || low == high) return share;
    // The first item that starts at `low` or after it, which may be the next sequence's.
    share.extent = extent_of(args, sequence);
    const index_t cost = item_cost(share.extent), ahead = low - start[0];
    const index_t skipped = (ahead + cost - 1) / cost;
    share.left = static_cast<int>(high - start[0] - skipped * cost);
    share.item = static_cast<int>(skipped);
    share.advance(args, 0);
    return share;
}

}  // namespace fastbert::cuda
