#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/ops/attention_decode.h"
#include "cpu/vec/lane_sums.h"
#include "cpu/vec/pairs.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {
namespace decode_detail {

// Keys that all heads take before the next ones: their rows lie one behind the other in a cache,
// which the hardware's prefetch follows, and those of one head alone do not.
constexpr index_t kBlock = 16;
static_assert(kBlock % F32::lanes == 0, "a block is whole vectors of scores");

// What is read after the rows at work, a part of it with each of them: the next block, or the
// values behind the last keys. Into L1, which has room for a block and the next one.
template <typename T>
struct Ahead {
    const T* rows;  // null: none
    index_t stride;

    // Brings `count` elements of row j.
    void fetch(index_t j, index_t first, index_t count) const {
        if (rows == nullptr) return;
        const T* const from = rows + j * stride + first;
        const char* const end = reinterpret_cast<const char*>(from + count);
        for (const char* at = reinterpret_cast<const char*>(from); at < end; at += 64) {
            __builtin_prefetch(at, 0, 3);
        }
    }
};

// Lane by lane products of `group` queries with `side` keys, side by side: each part of a query is
// loaded once for all of them.
template <int group, int side, typename T>
inline void multiply_keys(const float* q, index_t q_stride, const T* keys, index_t stride,
                          index_t head_dim, F32 (&sums)[group][side]) {
    constexpr int lanes = F32::lanes;
    for (int g = 0; g < group; ++g) {
        for (int j = 0; j < side; ++j) sums[g][j] = zero();
    }
    index_t i = 0;
    for (; i + 2 * lanes <= head_dim; i += 2 * lanes) {
        F32 low[side], high[side];
        for (int j = 0; j < side; ++j) load_two(keys + j * stride + i, low[j], high[j]);
        for (int g = 0; g < group; ++g) {
            const float* const at = q + g * q_stride + i;
            const F32 q_low = load(at), q_high = load(at + lanes);
            for (int j = 0; j < side; ++j) {
                sums[g][j] = fma(q_high, high[j], fma(q_low, low[j], sums[g][j]));
            }
        }
    }
    const auto rest = [&](auto extent) {
        for (int j = 0; j < side; ++j) {
            const F32 part = load(keys + j * stride + i, extent);
            for (int g = 0; g < group; ++g) {
                sums[g][j] = fma(load(q + g * q_stride + i, extent), part, sums[g][j]);
            }
        }
    };
    if (i + lanes <= head_dim) {
        rest(Whole{});
        i += lanes;
    }
    if (i < head_dim) rest(Part{static_cast<int>(head_dim - i)});
}

// scores[g][j] = scale * <q[g], k[j]> for `group` queries and the keys of a block.
template <int group, typename T>
inline void scores_of(const float* q, index_t q_stride, const T* k, index_t stride,
                      const Ahead<T>& ahead, index_t keys, index_t head_dim, float scale,
                      float* scores) {
    constexpr int lanes = F32::lanes, side = LaneSums::side;
    const auto finish = [&](index_t first, int count, const LaneSums(&sums)[group]) {
        for (int g = 0; g < group; ++g) {
            store_n(scores + g * kDecodeChunk + first, mul(sums[g].total(), set1(scale)), count);
        }
    };
    index_t first = 0;
    for (; first + lanes <= keys; first += lanes) {
        LaneSums sums[group];
#pragma GCC unroll 16
        for (int j = 0; j < lanes; j += side) {
            for (int n = 0; n < side; ++n) ahead.fetch(first + j + n, 0, head_dim);
            F32 products[group][side];
            multiply_keys(q, q_stride, k + (first + j) * stride, stride, head_dim, products);
            for (int g = 0; g < group; ++g) sums[g].take(j, products[g]);
        }
        finish(first, lanes, sums);
    }
    if (first == keys) return;
    const int count = static_cast<int>(keys - first);
    LaneSums sums[group];
    for (int j = 0; j < lanes; j += side) {
        F32 products[group][side];
        for (int n = 0; n < side; ++n) {
            F32 one[group][1];
            for (int g = 0; g < group; ++g) one[g][0] = zero();
            if (j + n < count) {
                ahead.fetch(first + j + n, 0, head_dim);
                multiply_keys(q, q_stride, k + (first + j + n) * stride, stride, head_dim, one);
            }
            for (int g = 0; g < group; ++g) products[g][n] = one[g][0];
        }
        for (int g = 0; g < group; ++g) sums[g].take(j, products[g]);
    }
    finish(first, count, sums);
}

// out[g][columns] += sum_j p[g][j] v[j][columns] of `pairs` pairs of vectors from `column` on.
template <int group, int pairs, typename T>
inline void weigh_pairs(const float* p, const T* v, index_t stride, const Ahead<T>& ahead,
                        index_t keys, index_t column, float* out, index_t out_stride) {
    constexpr int lanes = F32::lanes;
    v += column;
    out += column;
    F32 sums[group][2 * pairs];
    for (int g = 0; g < group; ++g) {
        for (int c = 0; c < 2 * pairs; ++c) sums[g][c] = load(out + g * out_stride + c * lanes);
    }
    for (index_t j = 0; j < keys; ++j) {
        ahead.fetch(j, column, 2 * pairs * lanes);
        F32 values[2 * pairs];
        for (int c = 0; c < pairs; ++c) {
            load_two(v + j * stride + 2 * c * lanes, values[2 * c], values[2 * c + 1]);
        }
        for (int g = 0; g < group; ++g) {
            const F32 weight = set1(p[g * kDecodeChunk + j]);
            for (int c = 0; c < 2 * pairs; ++c) sums[g][c] = fma(weight, values[c], sums[g][c]);
        }
    }
    for (int g = 0; g < group; ++g) {
        for (int c = 0; c < 2 * pairs; ++c) store(out + g * out_stride + c * lanes, sums[g][c]);
    }
}

// The same of one vector.
template <int group, typename T, typename Extent>
inline void weigh_column(const float* p, const T* v, index_t stride, const Ahead<T>& ahead,
                         index_t keys, index_t column, float* out, index_t out_stride,
                         Extent extent) {
    v += column;
    out += column;
    F32 sums[group];
    for (int g = 0; g < group; ++g) sums[g] = load(out + g * out_stride, extent);
    for (index_t j = 0; j < keys; ++j) {
        ahead.fetch(j, column, F32::lanes);
        const F32 value = load(v + j * stride, extent);
        for (int g = 0; g < group; ++g) {
            sums[g] = fma(set1(p[g * kDecodeChunk + j]), value, sums[g]);
        }
    }
    for (int g = 0; g < group; ++g) store(out + g * out_stride, sums[g], extent);
}

template <int group, typename T>
inline void weigh(const float* p, const T* v, index_t stride, const Ahead<T>& ahead, index_t keys,
                  index_t head_dim, float* out, index_t out_stride) {
    constexpr index_t lanes = F32::lanes;
    index_t i = 0;
    for (; i + 4 * lanes <= head_dim; i += 4 * lanes) {
        weigh_pairs<group, 2>(p, v, stride, ahead, keys, i, out, out_stride);
    }
    if (i + 2 * lanes <= head_dim) {
        weigh_pairs<group, 1>(p, v, stride, ahead, keys, i, out, out_stride);
        i += 2 * lanes;
    }
    if (i + lanes <= head_dim) {
        weigh_column<group>(p, v, stride, ahead, keys, i, out, out_stride, Whole{});
        i += lanes;
    }
    if (i < head_dim) {
        weigh_column<group>(p, v, stride, ahead, keys, i, out, out_stride,
                            Part{static_cast<int>(head_dim - i)});
    }
}

// Turns scores into exponentials, and returns their maximum and sum.
inline void exponentials(float* scores, index_t keys, float& high, float& sum) {
    F32 most = set1(-__builtin_inff());
    index_t j = 0;
    for (; j + F32::lanes <= keys; j += F32::lanes) most = max(most, load(scores + j));
    high = reduce_max(most);
    for (; j < keys; ++j) high = scores[j] > high ? scores[j] : high;
    Sums sums;
    const F32 shift = set1(high);
    sweep(keys, [&](index_t i, auto extent, int slot) {
        const F32 e = keep(exp(sub(load(scores + i, extent), shift)), extent);
        store(scores + i, e, extent);
        sums.part[slot] = add(sums.part[slot], e);
    });
    sum = sums.total();
}

// body(size, g) for the queries of a group, at most four at once: g is the first of them, and size
// says in its type how many.
template <class Body>
inline void each_few(index_t group, Body&& body) {
    index_t g = 0;
    for (; g + 4 <= group; g += 4) body(std::integral_constant<int, 4>{}, g);
    for (; g + 2 <= group; g += 2) body(std::integral_constant<int, 2>{}, g);
    if (g < group) body(std::integral_constant<int, 1>{}, g);
}

// One task at work: its heads, and where their queries and scores are.
template <typename T>
class Chunk {
  public:
    Chunk(const AttentionDecodeArgs& args, const DecodeTask& task, float* parts,
          index_t parts_stride, float* scratch)
        : args_(args),
          task_(task),
          group_(args.num_heads / args.num_kv_heads),
          padded_(decode_padded(args.head_dim)),
          part_(decode_part_floats(args.head_dim)),
          parts_(parts),
          parts_stride_(parts_stride),
          queries_(scratch),
          scores_(scratch + task.heads * group_ * padded_) {}

    void run() const {
        load_queries();
        const Rows keys = rows(args_.k, args_.k_row_stride, args_.k_head_stride);
        const Rows values = rows(args_.v, args_.v_row_stride, args_.v_head_stride);
        each_block(keys, &values,
                   [&](index_t head, const T* k, const Ahead<T>& ahead, index_t first,
                       index_t count) { score(head, k, ahead, first, count); });
        for (index_t head = 0; head < task_.heads; ++head) {
            for (index_t g = 0; g < group_; ++g) {
                float* const part = part_of(head, g);
                exponentials(scores(head, g), task_.count, part[0], part[1]);
                std::memset(part + 16, 0, static_cast<std::size_t>(padded_) * sizeof(float));
            }
        }
        each_block(values, nullptr,
                   [&](index_t head, const T* v, const Ahead<T>& ahead, index_t first,
                       index_t count) { add_values(head, v, ahead, first, count); });
        for (index_t head = 0; head < task_.heads; ++head) {
            for (index_t g = 0; g < group_; ++g) in_order(part_of(head, g) + 16);
        }
    }

  private:
    float* query(index_t head, index_t g) const { return queries_ + (head * group_ + g) * padded_; }
    float* scores(index_t head, index_t g) const {
        return scores_ + (head * group_ + g) * kDecodeChunk;
    }
    float* part_of(index_t head, index_t g) const {
        return parts_ + head * parts_stride_ + g * part_;
    }

    // Puts sums that were taken from pairs of vectors into the order of their columns.
    void in_order(float* sums) const {
        for (index_t i = 0; i + 2 * F32::lanes <= args_.head_dim; i += 2 * F32::lanes) {
            store_two(sums + i, load(sums + i), load(sums + i + F32::lanes),
                      static_cast<const T*>(nullptr));
        }
    }

    void load_queries() const {
        const index_t row = args_.sequences[task_.sequence].query;
        for (index_t head = 0; head < task_.heads; ++head) {
            for (index_t g = 0; g < group_; ++g) {
                const index_t at = (task_.first_head + head) * group_ + g;
                const T* const q = static_cast<const T*>(args_.q) + row * args_.q_row_stride +
                                   at * args_.q_head_stride;
                float* const to = query(head, g);
                index_t i = 0;
                for (; i + 2 * F32::lanes <= args_.head_dim; i += 2 * F32::lanes) {
                    F32 low, high;
                    load_two(q + i, low, high);
                    store(to + i, low);
                    store(to + i + F32::lanes, high);
                }
                sweep(args_.head_dim - i, [&](index_t at, auto extent, int) {
                    store(to + i + at, load(q + i + at, extent), extent);
                });
            }
        }
    }

    // The keys or the values of the task.
    struct Rows {
        const T* first;  // of the task's first head
        index_t row_stride, head_stride;
        const T* at(index_t row, index_t head) const {
            return first + row * row_stride + head * head_stride;
        }
    };

    Rows rows(const void* memory, index_t row_stride, index_t head_stride) const {
        const index_t begin = args_.sequences[task_.sequence].first_key + task_.first;
        const T* const base = static_cast<const T*>(memory);
        return {base + begin * row_stride + task_.first_head * head_stride, row_stride,
                head_stride};
    }

    // What a head's rows bring of the block that begins at row `first`: where rows lie behind one
    // another, a part of them in the order of their addresses, which memory gives faster than the
    // rows of one head, 81 and 74 % of its bandwidth (Zen 5, head_dim 64, 8 heads of k and v).
    Ahead<T> ahead_from(const Rows& rows, index_t first, index_t head) const {
        const bool dense =
            rows.head_stride == args_.head_dim && rows.row_stride == task_.heads * args_.head_dim;
        if (!dense) return {rows.at(first, head), rows.row_stride};
        return {rows.at(first, 0) + head * kBlock * args_.head_dim, args_.head_dim};
    }

    // body(head, rows, ahead, first, keys): the rows of a head, keys [first, first + keys) of the
    // task. Those of `next` are read behind the last of them.
    template <class Body>
    void each_block(const Rows& rows, const Rows* next, Body&& body) const {
        for (index_t first = 0; first < task_.count; first += kBlock) {
            const index_t left = task_.count - first, keys = left < kBlock ? left : kBlock;
            for (index_t head = 0; head < task_.heads; ++head) {
                // A last block may have fewer rows than this one: what lies behind is not read.
                Ahead<T> ahead{nullptr, 0};
                if (left > kBlock) {
                    ahead = ahead_from(rows, first + kBlock, head);
                } else if (next != nullptr) {
                    ahead = ahead_from(*next, 0, head);
                }
                body(head, rows.at(first, head), ahead, first, keys);
            }
        }
    }

    void score(index_t head, const T* k, const Ahead<T>& ahead, index_t first, index_t keys) const {
        each_few(group_, [&](auto size, index_t g) {
            scores_of<size>(query(head, g), padded_, k, args_.k_row_stride, ahead, keys,
                            args_.head_dim, args_.scale, scores(head, g) + first);
        });
    }

    void add_values(index_t head, const T* v, const Ahead<T>& ahead, index_t first,
                    index_t keys) const {
        each_few(group_, [&](auto size, index_t g) {
            weigh<size>(scores(head, g) + first, v, args_.v_row_stride, ahead, keys, args_.head_dim,
                        part_of(head, g) + 16, part_);
        });
    }

    const AttentionDecodeArgs& args_;
    const DecodeTask& task_;
    const index_t group_, padded_, part_;
    float* const parts_;
    const index_t parts_stride_;
    float* const queries_;
    float* const scores_;
};

template <typename T>
void chunk(const AttentionDecodeArgs& args, const DecodeTask& task, float* parts,
           index_t parts_stride, float* scratch) {
    Chunk<T>(args, task, parts, parts_stride, scratch).run();
}

template <typename T>
void join(const float* parts, index_t chunks, index_t stride, index_t head_dim, void* out) {
    float high = -__builtin_inff();
    for (index_t c = 0; c < chunks; ++c) {
        const float here = parts[c * stride];
        // A NaN wins over every number, and stays.
        high = here <= high ? high : here;
    }
    const auto weight = [&](index_t c) {
        return chunks == 1 ? set1(1.0f) : exp(set1(parts[c * stride] - high));
    };
    F32 sum = zero();
    for (index_t c = 0; c < chunks; ++c) sum = fma(weight(c), set1(parts[c * stride + 1]), sum);
    T* const to = static_cast<T*>(out);
    sweep(head_dim, [&](index_t i, auto extent, int) {
        F32 y = zero();
        for (index_t c = 0; c < chunks; ++c) {
            y = fma(weight(c), load(parts + c * stride + 16 + i, extent), y);
        }
        store(to + i, div(y, sum), extent);
    });
}

}  // namespace decode_detail

constexpr AttentionDecodeKernels attention_decode_kernels = {
    {decode_detail::chunk<float>, decode_detail::chunk<bf16_t>, decode_detail::chunk<f16_t>},
    {decode_detail::join<float>, decode_detail::join<bf16_t>, decode_detail::join<f16_t>}};

}  // namespace
}  // namespace fastbert
