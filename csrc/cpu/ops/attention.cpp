#include "cpu/ops/attention.h"

#include <algorithm>
#include <cmath>
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

// Each slice packs the keys of its sequence anew, which costs about 1 % of a slice of 256 queries.
constexpr index_t kLongestSlice = 264;
constexpr index_t kShortestSlice = 48;
constexpr index_t kSlicesPerThread = 4;
// A task takes a slice of several heads, one after the other, so that the rows of the next head can
// be fetched during this one; but no more of them than leave the threads evenly busy.
constexpr index_t kTasksPerThread = 8;

void require(bool condition, const std::string& sentence) {
    if (!condition) fail("attention_varlen", sentence);
}

void check_lengths(const std::int32_t* cu_seqlens, index_t batch, index_t total, index_t longest,
                   const char* side) {
    const std::string name = std::string("cu_seqlens_") + side;
    require(cu_seqlens != nullptr, name + " is missing.");
    require(cu_seqlens[0] == 0,
            name + " must start at 0, but it starts at " + std::to_string(cu_seqlens[0]) + ".");
    for (index_t b = 0; b < batch; ++b) {
        const index_t length = index_t{cu_seqlens[b + 1]} - cu_seqlens[b];
        require(length >= 0,
                name + " must never fall, but it does after entry " + std::to_string(b) + ".");
        require(length <= longest, "sequence " + std::to_string(b) + " has " +
                                       std::to_string(length) + " rows, more than max_seqlen_" +
                                       side + " = " + std::to_string(longest) + ".");
    }
    require(cu_seqlens[batch] == total, name + " must end at the number of rows, " +
                                            std::to_string(total) + ", but it ends at " +
                                            std::to_string(cu_seqlens[batch]) + ".");
}

const AttentionKernel& kernel_of(const AttentionArgs& a) {
    const AttentionKernels& all = active_kernels().attention;
    switch (a.dtype) {
        case DType::bf16:
            return all.bf16;
        case DType::f16:
            return all.f16;
        default:
            return all.f32;
    }
}

index_t length_of(const std::int32_t* cu_seqlens, index_t sequence) {
    return index_t{cu_seqlens[sequence + 1]} - cu_seqlens[sequence];
}

index_t slices_of(index_t queries, index_t longest) { return (queries + longest - 1) / longest; }

// Shorter slices where there would be too few for the threads. The choice changes no result.
index_t slice_length(const AttentionArgs& a, int threads) {
    index_t length = kLongestSlice;
    while (threads > 1 && length > kShortestSlice) {
        index_t slices = 0;
        for (index_t b = 0; b < a.batch; ++b) {
            slices += a.num_heads * slices_of(length_of(a.cu_seqlens_q, b), length);
            if (slices >= kSlicesPerThread * threads) return length;
        }
        length /= 2;
    }
    return length;
}

// Tasks that the heads of one slice of a sequence are shared out to.
class HeadGroups {
  public:
    HeadGroups(const AttentionArgs& args, index_t longest, int threads)
        : args_(args), longest_(longest) {
        if (threads == 1) return;
        double scores = 0.0;
        for (index_t b = 0; b < args.batch; ++b) {
            scores += static_cast<double>(length_of(args.cu_seqlens_q, b)) *
                      static_cast<double>(length_of(args.cu_seqlens_k, b));
        }
        most_scores_ = scores * static_cast<double>(args.num_heads) /
                       static_cast<double>(kTasksPerThread * threads);
    }

    index_t of(index_t sequence) const {
        if (most_scores_ == 0.0) return 1;
        const index_t queries = std::min(length_of(args_.cu_seqlens_q, sequence), longest_);
        const double scores = static_cast<double>(queries) *
                              static_cast<double>(length_of(args_.cu_seqlens_k, sequence));
        const double groups =
            std::ceil(scores * static_cast<double>(args_.num_heads) / most_scores_);
        return std::clamp(static_cast<index_t>(groups), index_t{1}, args_.num_heads);
    }

  private:
    const AttentionArgs& args_;
    const index_t longest_;
    double most_scores_ = 0.0;  // of a task; 0: no limit
};

constexpr index_t aligned(index_t bytes) { return (bytes + 63) / 64 * 64; }

// Workspace: the sequences in the order they are worked on, the number of tasks before each, then
// scratch for every thread.
struct Schedule {
    std::int32_t* order;
    std::int64_t* first_task;
    char* scratch;

    Schedule(void* workspace, index_t batch)
        : order(static_cast<std::int32_t*>(workspace)),
          first_task(
              reinterpret_cast<std::int64_t*>(static_cast<char*>(workspace) + aligned(batch * 4))),
          scratch(static_cast<char*>(workspace) + bytes(batch)) {}
    static index_t bytes(index_t batch) { return aligned(batch * 4) + aligned((batch + 1) * 8); }
};

index_t scratch_bytes(const AttentionArgs& a) {
    return aligned(kernel_of(a).scratch_bytes(a.head_dim, std::min(a.max_seqlen_q, kLongestSlice)));
}

struct Workspace {
    void* data = nullptr;
    index_t size = 0;
    ~Workspace() { std::free(data); }
    void* at_least(index_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = 0;
            data = std::aligned_alloc(64, static_cast<std::size_t>(aligned(bytes)));
            if (data == nullptr) throw std::bad_alloc();
            size = bytes;
        }
        return data;
    }
};

}  // namespace

void check_attention(const AttentionArgs& a) {
    check_float_dtype("attention_varlen", "q", a.dtype);
    require(a.batch >= 0 && a.total_q >= 0 && a.total_k >= 0, "sizes must not be negative.");
    require(a.num_heads >= 1 && a.head_dim >= 1, "there must be a head, and it must have a width.");
    require(a.group >= 0 && (a.group < 2 || a.num_heads % a.group == 0),
            "num_heads must be a multiple of group.");
    require(a.head_dim <= 4096, "head_dim must be at most 4096.");
    check_lengths(a.cu_seqlens_q, a.batch, a.total_q, a.max_seqlen_q, "q");
    check_lengths(a.cu_seqlens_k, a.batch, a.total_k, a.max_seqlen_k, "k");
    require((a.q != nullptr && a.out != nullptr) || a.total_q == 0, "q or out is missing.");
    require((a.k != nullptr && a.v != nullptr) || a.total_k == 0, "k or v is missing.");
    const index_t width = a.num_heads * a.head_dim;
    require(a.total_q <= 1 || a.out_row_stride >= width ||
                (a.num_heads == 1 && a.out_row_stride >= a.head_dim),
            "the rows of out overlap.");
}

index_t attention_workspace_bytes(const AttentionArgs& args, int threads) {
    return Schedule::bytes(args.batch) + threads * scratch_bytes(args);
}

void attention_varlen(const AttentionArgs& given) {
    thread_local Workspace own;
    // Read once: another thread of the caller may write to them after they were checked.
    thread_local std::vector<std::int32_t> lengths_q, lengths_k;
    const int threads = max_threads();
    AttentionArgs args = given;
    const auto copy = [&args](const std::int32_t*& cu_seqlens, std::vector<std::int32_t>& kept) {
        if (cu_seqlens == nullptr || args.batch < 0) return;  // check_attention refuses them
        kept.assign(cu_seqlens, cu_seqlens + args.batch + 1);
        cu_seqlens = kept.data();
    };
    copy(args.cu_seqlens_q, lengths_q);
    copy(args.cu_seqlens_k, lengths_k);
    check_attention(args);
    attention_varlen(args, own.at_least(attention_workspace_bytes(args, threads)), threads);
}

void attention_varlen(const AttentionArgs& args, void* workspace, int threads) {
    check_attention(args);
    if (args.total_q == 0) return;
    const Schedule schedule(workspace, args.batch);
    // The longest sequences first, so that no thread is left alone with one at the end.
    std::int32_t* const order = schedule.order;
    for (index_t b = 0; b < args.batch; ++b) order[b] = static_cast<std::int32_t>(b);
    std::sort(order, order + args.batch, [&args](std::int32_t a, std::int32_t b) {
        const auto cost = [&args](index_t s) {
            return length_of(args.cu_seqlens_q, s) * length_of(args.cu_seqlens_k, s);
        };
        const index_t cost_a = cost(a), cost_b = cost(b);
        return cost_a != cost_b ? cost_a > cost_b : a < b;
    });
    const index_t longest = slice_length(args, threads);
    const HeadGroups groups(args, longest, threads);
    schedule.first_task[0] = 0;
    for (index_t n = 0; n < args.batch; ++n) {
        const index_t slices = slices_of(length_of(args.cu_seqlens_q, order[n]), longest);
        schedule.first_task[n + 1] = schedule.first_task[n] + slices * groups.of(order[n]);
    }
    const AttentionKernel& kernel = kernel_of(args);
    const index_t scratch_size = scratch_bytes(args);
    const index_t tasks = schedule.first_task[args.batch];
    const auto task_of = [&](index_t number) {
        const std::int64_t* const begin = schedule.first_task;
        const index_t n = std::upper_bound(begin, begin + args.batch + 1, number) - begin - 1;
        const index_t sequence = order[n], queries = length_of(args.cu_seqlens_q, sequence);
        const index_t per_head = slices_of(queries, longest);
        const index_t at = number - begin[n];
        // Slices of equal length, in whole blocks of queries, rather than a short last one.
        const index_t share_of_queries = (queries + per_head - 1) / per_head;
        const index_t even =
            (share_of_queries + kernel.query_block - 1) / kernel.query_block * kernel.query_block;
        const index_t query_begin = std::min(at % per_head * even, queries);
        const index_t shares = groups.of(sequence), share = at / per_head;
        return AttentionTask{sequence, args.num_heads * share / shares,
                             args.num_heads * (share + 1) / shares, query_begin,
                             std::min(even, queries - query_begin)};
    };
    parallel_for(tasks, threads, [&](index_t number, int worker) {
        const AttentionTask task = task_of(number);
        if (task.query_count == 0) return;
        // While all threads are busy with tasks of one size they take turns.
        const index_t after = number + threads;
        const AttentionTask next = after < tasks ? task_of(after) : task;
        kernel.run(args, task, after < tasks ? &next : nullptr,
                   schedule.scratch + worker * scratch_size);
    });
}

}  // namespace fastbert
