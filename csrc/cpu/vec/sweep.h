// Walking over a row of any length: whole vectors, then one partial vector. Included by ops after a
// vec header.
#pragma once

#include "common/types.h"

namespace fastbert {
namespace {

struct Whole {};
struct Part {
    int n;
};

template <typename T>
inline F32 load(const T* p, Whole) {
    return load(p);
}
template <typename T>
inline F32 load(const T* p, Part part) {
    return load_n(p, part.n);
}
template <typename T>
inline void store(T* p, F32 a, Whole) {
    store(p, a);
}
template <typename T>
inline void store(T* p, F32 a, Part part) {
    store_n(p, a, part.n);
}
inline F32 keep(F32 a, Whole) { return a; }
inline F32 keep(F32 a, Part part) { return keep_n(a, part.n); }

// Partial sums: the additions of a long row overlap instead of waiting for one another, and none of
// them grows long. At least 32 of them in all, since the error of a float32 sum grows with its
// length: one lane with 4 was five times as wrong as PyTorch on rows of 768 positive values.
struct Sums {
    static constexpr int count = F32::lanes >= 8 ? 4 : 32 / F32::lanes;
    F32 part[count];
    Sums() {
        for (int slot = 0; slot < count; ++slot) part[slot] = zero();
    }
    float total() const {
        F32 tree[count];
        for (int slot = 0; slot < count; ++slot) tree[slot] = part[slot];
        for (int width = count / 2; width > 0; width /= 2) {
            for (int slot = 0; slot < width; ++slot) {
                tree[slot] = add(tree[2 * slot], tree[2 * slot + 1]);
            }
        }
        return reduce_add(tree[0]);
    }
};

// body(i, extent, slot) for each vector of [0, n): extent is Whole or Part, slot names the partial
// sum to use. The order is fixed by n alone.
template <typename Body>
inline __attribute__((always_inline)) void sweep(index_t n, Body&& body) {
    constexpr index_t lanes = F32::lanes;
    index_t i = 0;
    for (; i + Sums::count * lanes <= n; i += Sums::count * lanes) {
#pragma GCC unroll 4
        for (int slot = 0; slot < Sums::count; ++slot) body(i + slot * lanes, Whole{}, slot);
    }
    for (; i + lanes <= n; i += lanes) body(i, Whole{}, 0);
    if (i < n) body(i, Part{static_cast<int>(n - i)}, 0);
}

}  // namespace
}  // namespace fastbert
