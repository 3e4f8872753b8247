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

// The number of the first task of every sequence, and of all tasks.
std::vector<index_t> first_tasks(const AttentionDecodeArgs& a) {
    std::vector<index_t> first(static_cast<std::size_t>(a.batch) + 1, 0);
    for (index_t b = 0; b < a.batch; ++b) {
        first[b + 1] = first[b] + chunks_of(a.sequences[b].keys) * a.num_kv_heads;
    }
    return first;
}

// Which chunk of which sequence and head the tasks are: those of one head of k and v one after the
// other, so that a thread that takes the next task goes on reading where the last one stopped.
DecodeTask task_of(const AttentionDecodeArgs& a, const std::vector<index_t>& first_task,
                   index_t number) {
    const auto after = std::upper_bound(first_task.begin(), first_task.end(), number);
    const index_t b = after - first_task.begin() - 1;
    const index_t keys = a.sequences[b].keys, chunks = chunks_of(keys);
    const index_t at = number - first_task[b], first = at % chunks * kDecodeChunk;
    return {b, at / chunks, first, std::min(keys - first, kDecodeChunk)};
}

}  // namespace

index_t decode_workspace_bytes(const AttentionDecodeArgs& a, int threads) {
    const index_t group = a.num_heads / a.num_kv_heads;
    const index_t parts = all_chunks(a) * a.num_heads * decode_part_floats(a.head_dim);
    return aligned(parts * 4) + threads * aligned(decode_scratch_floats(group, a.head_dim) * 4);
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
    const AttentionDecodeKernels& kernels = active_kernels().attention_decode;
    const auto code = static_cast<int>(args.dtype);
    const index_t group = args.num_heads / args.num_kv_heads, d = args.head_dim;
    const index_t part = decode_part_floats(d);
    const std::vector<index_t> first_task = first_tasks(args);
    const index_t tasks = first_task.back();
    float* const parts = static_cast<float*>(workspace);
    char* const scratch = static_cast<char*>(workspace) + aligned(tasks * group * part * 4);
    const index_t scratch_size = aligned(decode_scratch_floats(group, d) * 4);
    parallel_for(tasks, threads, [&](index_t number, int worker) {
        kernels.chunk[code](args, task_of(args, first_task, number), parts + number * group * part,
                            reinterpret_cast<float*>(scratch + worker * scratch_size));
    });
    const index_t element = size_of(args.dtype);
    parallel_for(args.batch, threads, [&](index_t b, int) {
        const index_t chunks = chunks_of(args.sequences[b].keys);
        for (index_t h = 0; h < args.num_heads; ++h) {
            const index_t number = first_task[b] + h / group * chunks;
            const index_t at =
                args.sequences[b].query * args.out_row_stride + h * args.out_head_stride;
            kernels.join[code](parts + (number * group + h % group) * part, chunks, group * part, d,
                               static_cast<char*>(args.out) + at * element);
        }
    });
}

}  // namespace fastbert
