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

// Four partial sums: the additions of a long row overlap instead of waiting for one another.
struct Sums {
    F32 part[4] = {zero(), zero(), zero(), zero()};
    float total() const { return reduce_add(add(add(part[0], part[1]), add(part[2], part[3]))); }
};

// body(i, extent, slot) for each vector of [0, n): extent is Whole or Part, slot in 0..3 names the
// partial sum to use. The order is fixed by n alone.
template <typename Body>
inline __attribute__((always_inline)) void sweep(index_t n, Body&& body) {
    constexpr index_t lanes = F32::lanes;
    index_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
        body(i, Whole{}, 0);
        body(i + lanes, Whole{}, 1);
        body(i + 2 * lanes, Whole{}, 2);
        body(i + 3 * lanes, Whole{}, 3);
    }
    for (; i + lanes <= n; i += lanes) body(i, Whole{}, 0);
    if (i < n) body(i, Part{static_cast<int>(n - i)}, 0);
}

}  // namespace
}  // namespace fastbert
