// Keys and values of one head, copied from rows that lie far apart into panels that the products
// of attention stream through. Included by attention.inl.
#pragma once

#include "cpu/ops/attention_tiles.inl"
#include "cpu/vec/transpose.h"

namespace fastbert {
namespace {
namespace attention_detail {

constexpr index_t kPanel = kVecs * F32::lanes;  // keys per panel of K

constexpr index_t round_up(index_t n, index_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// V is cut into panels of nearly equal width, at most kVecs vectors each.
struct ValuePanels {
    index_t vectors, count;
    explicit ValuePanels(index_t head_dim)
        : vectors((head_dim + F32::lanes - 1) / F32::lanes), count((vectors + kVecs - 1) / kVecs) {}
    index_t begin(index_t panel) const { return vectors * panel / count; }
};

// Brings one row of a head into the second-level cache.
template <class T>
static inline void prefetch_row(const T* row, index_t head_dim) {
    const char* const end = reinterpret_cast<const char*>(row + head_dim);
    const auto past_line = reinterpret_cast<std::uintptr_t>(row) % 64;
    for (const char* at = reinterpret_cast<const char*>(row) - past_line; at < end; at += 64) {
        __builtin_prefetch(at, 0, 2);
    }
}

// Up to sixteen keys of a panel `width` keys wide: packed[step * width + key], zeros for the
// columns behind the first `rows`.
template <class Dot, class T>
static inline void pack_key_group(const T* k, index_t row_stride, index_t head_dim, index_t rows,
                                  index_t columns, index_t width, index_t steps, float* packed) {
    for (index_t s = 0; s < steps; s += 16) {
        const index_t element = s * Dot::elements_per_step, left = head_dim - element;
        const index_t count = steps - s < 16 ? steps - s : 16;
        const T* const from = k + element;
        float* const to = packed + s * width;
#if defined(__AVX512F__)
        static_cast<void>(columns);  // 16: panels are whole vectors wide
        F32 words[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) {
            words[r] = r < rows ? Dot::steps16(from + r * row_stride, left) : set1(0.0f);
        }
        transpose_16x16(words, static_cast<int>(count), to, width);
#else
        static_assert(Dot::elements_per_step == 1, "steps are taken for elements here");
        alignas(64) float staging[16 * 16];
        for (index_t r = 0; r < rows; ++r) {
            for (index_t i = 0; i < count; i += F32::lanes) {
                const T* const at = from + r * row_stride + i;
                const bool whole = left - i >= F32::lanes;
                store(staging + r * 16 + i, whole ? load(at) : load_n(at, int(left - i)));
            }
        }
        for (index_t i = 0; i < count; ++i) {
            for (index_t c = 0; c < columns; ++c) {
                to[i * width + c] = c < rows ? staging[c * 16 + i] : 0.0f;
            }
        }
#endif
    }
}

template <class Dot, class T>
static void pack_keys(const T* k, index_t row_stride, index_t head_dim, index_t keys, index_t steps,
                      float* packed) {
    for (index_t first = 0; first < keys; first += kPanel) {
        // The last panel is as narrow as whole vectors allow: short sequences waste little.
        const index_t in_panel = keys - first < kPanel ? keys - first : kPanel;
        const index_t width = round_up(in_panel, F32::lanes);
        for (index_t at = 0; at < width; at += 16) {
            const index_t left = in_panel - at < 16 ? in_panel - at : 16;
            const index_t rows = left < 0 ? 0 : left;
            pack_key_group<Dot>(k + (first + at) * row_stride, row_stride, head_dim, rows,
                                width - at < 16 ? width - at : 16, width, steps, packed + at);
        }
        packed += steps * width;
    }
}

template <class Dot, class T>
static void pack_values(const T* v, index_t row_stride, index_t head_dim, index_t keys,
                        const ValuePanels& panels, float* packed) {
    for (index_t p = 0; p < panels.count; ++p) {
        const index_t begin = panels.begin(p), vectors = panels.begin(p + 1) - begin;
        const index_t column = begin * F32::lanes;
        for (index_t j = 0; j < keys; j += Dot::elements_per_step) {
            const T* row = v + j * row_stride + column;
            const T* next = j + 1 < keys ? row + row_stride : nullptr;
            Dot::value_step(row, next, head_dim - column, vectors, packed);
            packed += vectors * F32::lanes;
        }
        const index_t steps = (keys + Dot::elements_per_step - 1) / Dot::elements_per_step;
        const index_t missing = round_up(steps, Dot::step_unit) - steps;
        for (index_t i = 0; i < missing * vectors; ++i, packed += F32::lanes) store(packed, zero());
    }
}

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
