// Attention on Hopper: wgmma, the copy engine, one block per multiprocessor that stays.
//
// Warpgroup 0 serves, the others compute. One thread of it fills a ring of stages, each a block of
// 128 keys and values of one head; one warp clears the values past a sequence's end (a weight of 0
// does not hide a NaN, and the copy engine brings the next sequence's rows); one thread deals out
// the items of the block's share, 64 queries each, in turns to the computing warpgroups. A sequence
// whose blocks fit into the ring is loaded once and stays until the last of the share's queries is
// done with it; a longer one streams past, once per round of warpgroups.
//
// Within a warpgroup the products of one block's weights and values run while the next block's
// softmax is computed, and the warpgroups' own phases drift apart, so that the matrix units and the
// exponentials of different blocks of keys overlap.
#pragma once

#include "cuda/attention/share.cuh"

namespace fastbert::cuda {

// What a computing warpgroup is told of its next item.
struct Item {
    int start;    // blocks that go through the ring before its run's first
    int steps;    // blocks to fold; negative: there are no more items
    int plain;    // of which so many are seen by every query, whole and without a bias
    int keys;     // seen by any of its queries
    int blocks;   // of its run
    int last;     // whether this is the warpgroup's last item of the run, so that stages are freed
    int partial;  // whether values of the run's last block are cleared
    int sequence, head;
    int first;  // query within the sequence
    int row;    // token of that query
    int left;   // queries from it to the sequence's end
    int unused[4];
};

template <int DIM>
struct Sm90 {
    static constexpr AttentionPlan plan = attention_plan_sm90(DIM);
    static constexpr int row_bytes = plan.row_bytes;
    static constexpr int blocks = DIM * 2 / row_bytes;  // across a head's row
    static constexpr int keys_bytes = keys_sm90 * DIM * 2;
    static constexpr int query_bytes = attention_rows * DIM * 2;
    static constexpr int keys_block = keys_sm90 * row_bytes;
    static constexpr int queries_block = attention_rows * row_bytes;
    static constexpr int resident_keys = plan.resident_keys();

    std::uint32_t base;  // of shared memory: stages, queries, the share's start, barriers

    __device__ std::uint32_t keys(int stage) const { return base + stage * 2 * keys_bytes; }
    __device__ std::uint32_t values(int stage) const { return keys(stage) + keys_bytes; }
    __device__ std::uint32_t queries(int warpgroup) const {
        return base + plan.stages * 2 * keys_bytes + warpgroup * query_bytes;
    }
    static constexpr int items_offset =
        plan.stages * 2 * keys_bytes + plan.warpgroups * query_bytes;
    // Two for each warpgroup: one is read while the next is written.
    static constexpr int barriers_offset =
        items_offset + plan.warpgroups * 2 * static_cast<int>(sizeof(Item));
    __device__ std::uint32_t barrier(int index) const { return base + barriers_offset + 8 * index; }
    // Keys and values have landed, values were cleared, a stage is free; an item and its queries
    // are there, its queries are no longer needed.
    __device__ std::uint32_t keys_full(int stage) const { return barrier(stage); }
    __device__ std::uint32_t values_full(int stage) const { return barrier(plan.stages + stage); }
    __device__ std::uint32_t cleared(int stage) const { return barrier(2 * plan.stages + stage); }
    __device__ std::uint32_t empty(int stage) const { return barrier(3 * plan.stages + stage); }
    __device__ std::uint32_t item_full(int warpgroup) const {
        return barrier(4 * plan.stages + warpgroup);
    }
    __device__ std::uint32_t queries_done(int warpgroup) const {
        return barrier(4 * plan.stages + plan.warpgroups + warpgroup);
    }
};

// Items of one head that share a run of blocks through the ring.
struct KeyRun {
    const Extent& extent;
    int head;
    int tile, tiles;  // the first, and how many
    int keys;         // seen by any of its queries

    __device__ int end() const { return (tile + tiles) * attention_rows; }
    __device__ int blocks() const { return (keys + keys_sm90 - 1) / keys_sm90; }
    // Products take a last block's values 32 keys at a time. Whether the last ones are past the
    // sequence, so that what stands there has to be cleared.
    __device__ int reach() const { return (keys + 31) / 32 * 32; }
    __device__ bool partial() const { return reach() > extent.len_k; }

    __device__ KeyRun(const AttentionVarlen& args, const Share& share, int warpgroups,
                      int resident_keys)
        : extent(share.extent), head(share.head()), tile(share.tile()) {
        const int cost = item_cost(extent);
        tiles = min((share.left - 1) / cost + 1, tiles_of(extent) - tile);
        if (extent.len_k > resident_keys) tiles = min(tiles, warpgroups);
        const int last = min(end(), extent.len_q) - 1;
        keys = extent.visible(last, args.causal);
    }
};

// A stage of the ring and how often it has gone round.
template <int STAGES>
struct Ring {
    int stage, parity;
    // After so many steps.
    __device__ explicit Ring(int steps) : stage(steps % STAGES), parity(steps / STAGES & 1) {}
    __device__ void step() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <int DIM>
__device__ void fetch(const AttentionVarlen& args, Share share, const Sm90<DIM>& at,
                      const TensorMap* k, const TensorMap* v) {
    using S = Sm90<DIM>;
    constexpr int columns = S::row_bytes / 2;
    Ring<S::plan.stages> ring(0);
    while (share.any()) {
        const KeyRun run(args, share, S::plan.warpgroups, S::resident_keys);
        const int kv_head = kv_head_of(args, run.head);
#pragma unroll 1
        for (int n = 0; n < run.blocks(); ++n, ring.step()) {
            const int row = run.extent.start_k + n * keys_sm90;
            ptx::barrier_wait(at.empty(ring.stage), ring.parity ^ 1);
            ptx::barrier_arrive_expecting(at.keys_full(ring.stage), S::keys_bytes);
#pragma unroll
            for (int block = 0; block < S::blocks; ++block) {
                ptx::load_box(at.keys(ring.stage) + block * S::keys_block, k,
                              at.keys_full(ring.stage), block * columns, kv_head, row);
            }
            ptx::barrier_arrive_expecting(at.values_full(ring.stage), S::keys_bytes);
#pragma unroll
            for (int block = 0; block < S::blocks; ++block) {
                ptx::load_box(at.values(ring.stage) + block * S::keys_block, v,
                              at.values_full(ring.stage), block * columns, kv_head, row);
            }
        }
        share.advance(args, run.tiles);
    }
}

// A warp: zeros for the values past a sequence's end, as far as products reach.
template <int DIM>
__device__ void clear_tails(const AttentionVarlen& args, Share share, const Sm90<DIM>& at) {
    using S = Sm90<DIM>;
    constexpr int units = DIM / 8, block_units = S::row_bytes / 16;
    const int lane = static_cast<int>(threadIdx.x % 32);
    Ring<S::plan.stages> ring(0);
    while (share.any()) {
        const KeyRun run(args, share, S::plan.warpgroups, S::resident_keys);
#pragma unroll 1
        for (int n = 0; n < run.blocks(); ++n, ring.step()) {
            ptx::barrier_wait(at.values_full(ring.stage), ring.parity);
            const bool clears = n + 1 == run.blocks() && run.partial();
            const int kept = run.extent.len_k - n * keys_sm90;
            const int rows = clears ? run.reach() - run.extent.len_k : 0;
#pragma unroll 1
            for (int i = lane; i < rows * units; i += 32) {
                const int row = kept + i / units, unit = i % units;
                ptx::store_shared(at.values(ring.stage) + unit / block_units * S::keys_block +
                                      row * S::row_bytes + unit % block_units * 16,
                                  make_uint4(0, 0, 0, 0));
            }
            if (clears) ptx::fence_async();
            __syncwarp();
            if (lane == 0) {
                ptx::barrier_arrive(at.cleared(ring.stage));
                // Stages wait for this warp too: it may not fall a whole phase behind.
                ptx::barrier_arrive(at.empty(ring.stage));
            }
        }
        share.advance(args, run.tiles);
    }
}

// A thread: items to warpgroups, in turns, with their queries.
template <int DIM>
__device__ void deal(const AttentionVarlen& args, Share share, const Sm90<DIM>& at, Item* items,
                     const TensorMap* q) {
    using S = Sm90<DIM>;
    constexpr int warpgroups = S::plan.warpgroups, columns = S::row_bytes / 2;
    // Blocks of the passes before, times eight, plus the next item's place: this thread has few
    // registers.
    int state = 0;
    const auto next_place = [&] {
        const int place = (state & 7) + 2,
                  turned = place < 2 * warpgroups ? place : place - 2 * warpgroups ^ 1;
        state = (state & ~7) | turned;
    };
    while (share.any()) {
        const KeyRun run(args, share, warpgroups, S::resident_keys);
#pragma unroll 1
        for (int first = run.tile * attention_rows; first < run.end(); first += attention_rows) {
            // Before the first, the phase that ended "before" it.
            const int turn = (state & 7) / 2;
            ptx::barrier_wait(at.queries_done(turn), state & 1 ^ 1);
            Item& item = items[state & 7];
            const int left = run.extent.len_q - first;
            const int keys = run.extent.visible(first + min(left, attention_rows) - 1, args.causal);
            const bool biased = args.key_bias != nullptr || args.bias != nullptr;
            item.start = state >> 3;
            item.steps = (keys + keys_sm90 - 1) / keys_sm90;
            item.plain = biased ? 0 : run.extent.visible(first, args.causal) / keys_sm90;
            item.keys = keys;
            item.blocks = run.blocks();
            item.last = first + warpgroups * attention_rows >= run.end();
            item.partial = run.partial();
            item.sequence = run.extent.sequence;
            item.head = run.head;
            item.first = first;
            item.row = run.extent.start_q + first;
            item.left = left;
            ptx::barrier_arrive_expecting(at.item_full(turn), S::query_bytes);
#pragma unroll
            for (int block = 0; block < S::blocks; ++block) {
                ptx::load_box(at.queries(turn) + block * S::queries_block, q, at.item_full(turn),
                              block * columns, run.head, run.extent.start_q + first);
            }
            next_place();
        }
        state += 8 * run.blocks();
        share.advance(args, run.tiles);
    }
#pragma unroll 1
    for (int i = 0; i < warpgroups; ++i) {
        const int turn = (state & 7) / 2;
        ptx::barrier_wait(at.queries_done(turn), state & 1 ^ 1);
        Item& item = items[state & 7];
        next_place();
        item.start = state >> 3;
        item.steps = -1;
        ptx::barrier_arrive(at.item_full(turn));
    }
}

// Scores of a block, s = q k^T. Issued, not waited for.
template <DType D, int DIM>
__device__ void issue_scores(float (&s)[keys_sm90 / 2], std::uint32_t q, std::uint32_t k) {
    using S = Sm90<DIM>;
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step) {
        const int block = step * 32 / S::row_bytes, inside = step * 32 % S::row_bytes;
        ptx::WarpgroupMma<D, keys_sm90>::issue(
            s, ptx::describe<S::row_bytes>(q + block * S::queries_block + inside, 8 * S::row_bytes),
            ptx::describe<S::row_bytes>(k + block * S::keys_block + inside, 8 * S::row_bytes),
            step > 0);
    }
}

// o += p v over the first KEYS keys of a block. Issued, not waited for.
template <DType D, int DIM, int KEYS>
__device__ void issue_outputs(float (&o)[DIM / 2], const std::uint32_t (&p)[keys_sm90 / 16][4],
                              std::uint32_t v) {
    using S = Sm90<DIM>;
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
        ptx::WarpgroupMma<D, DIM>::template issue_a_in_registers<false>(
            o, p[step],
            ptx::describe<S::row_bytes>(v + step * 16 * S::row_bytes, 8 * S::row_bytes,
                                        S::keys_block),
            true);
    }
}

// Calls f(std::integral_constant<int, keys>) for 32, 64, 96 or 128 keys, as few as hold `keys`.
template <typename F>
__device__ void with_keys(int keys, F f) {
    if (keys > 96) {
        f(std::integral_constant<int, 128>{});
    } else if (keys > 64) {
        f(std::integral_constant<int, 96>{});
    } else if (keys > 32) {
        f(std::integral_constant<int, 64>{});
    } else {
        f(std::integral_constant<int, 32>{});
    }
}

// A computing warpgroup, number `mine` of them.
template <DType D, int DIM>
__device__ void compute(const AttentionVarlen& args, const Sm90<DIM>& at, const Item* items,
                        int mine) {
    using S = Sm90<DIM>;
    const int thread = static_cast<int>(threadIdx.x % 128), lane = thread % 32;
    const int thread_row = thread / 32 * 16 + lane / 4;
    const float scale_log2 = args.scale * log2e;
    const std::uint32_t queries = at.queries(mine);
    // Blocks that have gone through the ring, times two, plus the next item's parity: few things
    // may live through an item beside its tiles.
    for (int state = 0;; state ^= 1) {
        const int parity = state & 1;
        ptx::barrier_wait(at.item_full(mine), parity);
        const Item& item = items[2 * mine + parity];
        for (; state >> 1 < item.start; state += 2) {
            const Ring<S::plan.stages> ring(state >> 1);
            ptx::barrier_wait(at.keys_full(ring.stage), ring.parity);
            ptx::barrier_wait(at.values_full(ring.stage), ring.parity);
            __syncwarp();
            if (lane == 0) ptx::barrier_arrive(at.empty(ring.stage));
        }
        const int steps = uniform(item.steps), plain = uniform(item.plain);
        if (steps < 0) return;

        float o[DIM / 2];
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) o[i] = 0.0f;
        float s[keys_sm90 / 2];
        std::uint32_t p[keys_sm90 / 16][4];
        float alpha[2];
        Softmax softmax;
        Ring<S::plan.stages> now(uniform(state) >> 1);
        const auto done_with = [&](int stage) {
            __syncwarp();
            if (lane == 0 && item.last != 0) ptx::barrier_arrive(at.empty(stage));
        };
        const auto queries_done = [&] {
            __syncwarp();
            if (lane == 0) ptx::barrier_arrive(at.queries_done(mine));
        };

        // While two stages are in use, the next is a third one.
        static_assert(S::plan.stages > 2);
        const auto wait_for_next_keys = [&] {
            Ring<S::plan.stages> next = now;
            next.step();
            ptx::barrier_wait(at.keys_full(next.stage), next.parity);
        };

        if (plain > 0) {
            ptx::barrier_wait(at.keys_full(now.stage), now.parity);
            ptx::products_fence();
            issue_scores<D, DIM>(s, queries, at.keys(now.stage));
            ptx::products_commit();
            ptx::products_wait<0>();
            fold<keys_sm90>(s, softmax, alpha, scale_log2);
            narrow_weights<D, keys_sm90>(s, p);
            if (plain > 1) wait_for_next_keys();
#pragma unroll 1
            for (int n = 1; n < plain; ++n) {
                const Ring<S::plan.stages> before = now;
                now.step();
                ptx::barrier_wait(at.values_full(before.stage), before.parity);
                ptx::products_fence();
                issue_scores<D, DIM>(s, queries, at.keys(now.stage));
                ptx::products_commit();
                issue_outputs<D, DIM, keys_sm90>(o, p, at.values(before.stage));
                ptx::products_commit();
                ptx::products_wait<1>();
                fold<keys_sm90>(s, softmax, alpha, scale_log2);
                // Here, not before the next scores: without a branch in between, ptxas moves the
                // wait for the outputs to before the exponentials, which would then overlap
                // nothing.
                if (n + 1 < plain) wait_for_next_keys();
                ptx::products_wait<0>();
                done_with(before.stage);
                shrink<DIM>(o, alpha);
                narrow_weights<D, keys_sm90>(s, p);
            }
            if (plain == steps) queries_done();
            ptx::barrier_wait(at.values_full(now.stage), now.parity);
            ptx::products_fence();
            issue_outputs<D, DIM, keys_sm90>(o, p, at.values(now.stage));
            ptx::products_commit();
            ptx::products_wait<0>();
            done_with(now.stage);
            now.step();
        }
#pragma unroll 1
        for (int n = plain; n < steps; ++n, now.step()) {
            const int keys = min(item.keys - n * keys_sm90, keys_sm90);
            ptx::barrier_wait(at.keys_full(now.stage), now.parity);
            // All 128 keys: fewer would leave part of s undefined, for which the compiler gives up
            // keeping products in flight (C7511) everywhere.
            ptx::products_fence();
            issue_scores<D, DIM>(s, queries, at.keys(now.stage));
            ptx::products_commit();
            ptx::products_wait<0>();
            if (n + 1 == steps) queries_done();
            const Extent extent = extent_of(args, item.sequence);
            const int query = item.first + thread_row;
            const int first = n * keys_sm90 + lane % 4 * 2;  // this thread's first key
            const int visible[2] = {extent.visible(query, args.causal) - first,
                                    extent.visible(query + 8, args.causal) - first};
            const Added added[2] = {Added(args, extent, item.head, query, first),
                                    Added(args, extent, item.head, query + 8, first)};
            fold_partly<keys_sm90>(s, softmax, alpha, scale_log2, visible, added);
            shrink<DIM>(o, alpha);
            narrow_weights<D, keys_sm90>(s, p);
            ptx::barrier_wait(at.values_full(now.stage), now.parity);
            if (n + 1 == item.blocks && item.partial != 0) {
                ptx::barrier_wait(at.cleared(now.stage), now.parity);
            }
            with_keys(keys, [&](auto count) {
                ptx::products_fence();
                issue_outputs<D, DIM, decltype(count)::value>(o, p, at.values(now.stage));
                ptx::products_commit();
                ptx::products_wait<0>();
            });
            done_with(now.stage);
        }
        if (steps == 0) queries_done();
        // Blocks that only other queries see.
        for (int n = steps; item.last != 0 && n < item.blocks; ++n, now.step()) {
            ptx::barrier_wait(at.keys_full(now.stage), now.parity);
            ptx::barrier_wait(at.values_full(now.stage), now.parity);
            done_with(now.stage);
        }
        if (item.last != 0) state += 2 * item.blocks;

        const bool keep[2] = {thread_row < item.left, thread_row + 8 < item.left};
        store_rows<D, DIM>(
            o, softmax,
            static_cast<std::uint16_t*>(args.out) +
                (static_cast<index_t>(item.row + thread_row) * args.heads + item.head) * DIM,
            static_cast<index_t>(args.heads) * DIM, keep);
    }
}

template <DType D, int DIM>
__global__ void __launch_bounds__(attention_plan_sm90(DIM).threads(), 1)
    attention_sm90_kernel(const AttentionVarlen args, const __grid_constant__ TensorMap q,
                          const __grid_constant__ TensorMap k,
                          const __grid_constant__ TensorMap v) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
    using S = Sm90<DIM>;
    unsigned char* const memory = ptx::dynamic_shared();
    const S at{ptx::shared_address(memory)};
    const int warpgroup = uniform(static_cast<int>(threadIdx.x / 128));
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < S::plan.stages; ++stage) {
            ptx::barrier_init(at.keys_full(stage), 1);
            ptx::barrier_init(at.values_full(stage), 1);
            ptx::barrier_init(at.cleared(stage), 1);
            // A warp may be done with a stage before its warpgroup is; and the one that clears.
            ptx::barrier_init(at.empty(stage), 4 * S::plan.warpgroups + 1);
        }
        for (int w = 0; w < S::plan.warpgroups; ++w) {
            ptx::barrier_init(at.item_full(w), 1);
            ptx::barrier_init(at.queries_done(w), 4);
        }
        ptx::barrier_init_fence();
        ptx::prefetch(&q);
        ptx::prefetch(&k);
        ptx::prefetch(&v);
    }
    auto* const items = reinterpret_cast<Item*>(memory + S::items_offset);
    const Share share = find_share(args, memory + S::items_offset);
    // Before the first item is written where the share was found.
    __syncthreads();
    // 65 536 registers: what the fetching warpgroup gives up, the others take.
    if (warpgroup == 0) {
        ptx::drop_registers<S::plan.warpgroups == 3 ? 32 : 40>();
        if (threadIdx.x == 0) fetch<DIM>(args, share, at, &k, &v);
        if (threadIdx.x / 32 == 1) clear_tails<DIM>(args, share, at);
        if (threadIdx.x == 64) deal<DIM>(args, share, at, items, &q);
    } else {
        ptx::raise_registers<S::plan.warpgroups == 3 ? 160 : 232>();
        compute<D, DIM>(args, at, items, warpgroup - 1);
    }
#endif
}

template <DType D>
void start_attention_sm90(const AttentionVarlen& args, int blocks, void* stream) {
    const auto view = [&](const void* data, index_t tokens, int heads, index_t stride,
                          index_t head_stride, int rows) {
        return tensor_map("attention_varlen",
                          attention_view(data, tokens, heads, stride, head_stride, rows, args));
    };
    const TensorMap q =
        view(args.q, args.total_q, args.heads, args.q_stride, args.q_head, attention_rows);
    // Without keys there is nothing to describe, and nothing that is read.
    const bool keys = args.total_k > 0;
    const TensorMap k =
        keys ? view(args.k, args.total_k, args.kv_heads, args.k_stride, args.k_head, keys_sm90) : q;
    const TensorMap v =
        keys ? view(args.v, args.total_k, args.kv_heads, args.v_stride, args.v_head, keys_sm90) : q;
    const auto run = [&](auto dim) {
        constexpr AttentionPlan plan = attention_plan_sm90(dim.value);
        start_shared(attention_sm90_kernel<D, dim.value>, dim3(blocks), plan.threads(),
                     plan.shared_bytes, stream, args, q, k, v);
    };
    with_dim(args.dim, run);
}

}  // namespace fastbert::cuda
