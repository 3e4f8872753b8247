#include "cpu/ops/attention_decode.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace fastbert {
namespace {

constexpr const char* op = "attention_decode";

void require(bool condition, const std::string& sentence) {
    if (!condition) fail(op, sentence);
}

index_t chunks_of(index_t keys) { return (keys + kDecodeChunk - 1) / kDecodeChunk; }

index_t aligned(index_t bytes) { return (bytes + 63) / 64 * 64; }

index_t all_chunks(const AttentionDecodeArgs& a) {
    index_t chunks = 0;
    for (index_t b = 0; b < a.batch; ++b) chunks += chunks_of(a.sequences[b].keys);
    return chunks;
}

void check(const AttentionDecodeArgs& a) {
    check_float_dtype(op, "q", a.dtype);
    check_size(op, "batch", a.batch);
    require(a.num_heads >= 1 && a.num_kv_heads >= 1 && a.num_heads % a.num_kv_heads == 0,
            "num_heads is " + std::to_string(a.num_heads) + ", num_kv_heads is " +
                std::to_string(a.num_kv_heads) + "; the first must be a multiple of the second.");
    require(a.head_dim >= 1 && a.head_dim <= 4096, "head_dim must be from 1 to 4096.");
    if (a.batch == 0) return;
    require(a.q != nullptr && a.k != nullptr && a.v != nullptr && a.out != nullptr &&
                a.sequences != nullptr,
            "q, k, v, out or sequences is missing.");
    for (index_t b = 0; b < a.batch; ++b) {
        const DecodeSequence& s = a.sequences[b];
        require(s.query >= 0 && s.first_key >= 0 && s.keys >= 1,
                "sequence " + std::to_string(b) + " has " + std::to_string(s.keys) +
                    " keys; every sequence must have a query and a key.");
    }
}

// The number of the first chunk of every sequence, and of all chunks.
std::vector<index_t> first_chunks(const AttentionDecodeArgs& a) {
    std::vector<index_t> first(static_cast<std::size_t>(a.batch) + 1, 0);
    for (index_t b = 0; b < a.batch; ++b) {
        first[b + 1] = first[b] + chunks_of(a.sequences[b].keys);
    }
    return first;
}

// Into how many tasks the heads of a chunk are divided: one, since all of them together are read
// from one end to the other, unless there are too few chunks for the threads.
index_t head_parts(const AttentionDecodeArgs& a, index_t chunks, int threads) {
    if (threads == 1) return 1;
    constexpr index_t tasks_per_thread = 4;
    return std::clamp<index_t>((tasks_per_thread * threads + chunks - 1) / chunks, 1,
                               a.num_kv_heads);
}

// Part `part` of `parts` of the heads of chunk `number`.
DecodeTask task_of(const AttentionDecodeArgs& a, const std::vector<index_t>& first_chunk,
                   index_t number, index_t part, index_t parts) {
    const auto after = std::upper_bound(first_chunk.begin(), first_chunk.end(), number);
    const index_t b = after - first_chunk.begin() - 1;
    const index_t first = (number - first_chunk[b]) * kDecodeChunk;
    const index_t head = part_begin(a.num_kv_heads, parts, part);
    return {b, head, part_begin(a.num_kv_heads, parts, part + 1) - head, first,
            std::min(a.sequences[b].keys - first, kDecodeChunk)};
}

// Joins the chunks of query head `head` of a sequence. parts: of all chunks, the heads of one after
// those of the other.
void join_head(const AttentionDecodeArgs& a, const float* parts, index_t first_chunk, index_t b,
               index_t head) {
    const index_t part = decode_part_floats(a.head_dim);
    const DecodeSequence& s = a.sequences[b];
    const index_t at = s.query * a.out_row_stride + head * a.out_head_stride;
    active_kernels().attention_decode.join[static_cast<int>(a.dtype)](
        parts + (first_chunk * a.num_heads + head) * part, chunks_of(s.keys), a.num_heads * part,
        a.head_dim, static_cast<char*>(a.out) + at * size_of(a.dtype));
}

}  // namespace

index_t decode_workspace_bytes(const AttentionDecodeArgs& a, int threads) {
    const index_t parts = all_chunks(a) * a.num_heads * decode_part_floats(a.head_dim);
    return aligned(parts * 4) +
           threads * aligned(decode_scratch_floats(a.num_heads, a.head_dim) * 4);
}

void attention_decode(const AttentionDecodeArgs& args) {
    check(args);
    const int threads = max_threads();
    const auto bytes = static_cast<std::size_t>(aligned(decode_workspace_bytes(args, threads)));
    if (bytes == 0) return;
    const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(64, bytes),
                                                           std::free);
    if (workspace == nullptr) throw std::bad_alloc();
    attention_decode(args, workspace.get(), threads);
}

void attention_decode(const AttentionDecodeArgs& args, void* workspace, int threads) {
    check(args);
    if (args.batch == 0) return;
    const auto kernel = active_kernels().attention_decode.chunk[static_cast<int>(args.dtype)];
    const index_t group = args.num_heads / args.num_kv_heads;
    const index_t part = decode_part_floats(args.head_dim);
    const std::vector<index_t> first_chunk = first_chunks(args);
    const index_t chunks = first_chunk.back(), heads = head_parts(args, chunks, threads);
    float* const parts = static_cast<float*>(workspace);
    char* const scratch =
        static_cast<char*>(workspace) + aligned(chunks * args.num_heads * part * 4);
    const index_t scratch_size = aligned(decode_scratch_floats(args.num_heads, args.head_dim) * 4);
    parallel_for(chunks * heads, threads, [&](index_t number, int worker) {
        const index_t chunk = number / heads;
        const DecodeTask task = task_of(args, first_chunk, chunk, number % heads, heads);
        kernel(args, task, parts + (chunk * args.num_heads + task.first_head * group) * part,
               group * part, reinterpret_cast<float*>(scratch + worker * scratch_size));
    });
    const index_t rows = args.batch * args.num_heads;
    const index_t joins = std::min<index_t>(rows, threads);
    parallel_for(joins, threads, [&](index_t number, int) {
        for (index_t r = part_begin(rows, joins, number); r < part_begin(rows, joins, number + 1);
             ++r) {
            const index_t b = r / args.num_heads;
            join_head(args, parts, first_chunk[b], b, r % args.num_heads);
        }
    });
}

}  // namespace fastbert
