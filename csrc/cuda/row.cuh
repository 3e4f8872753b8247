// Device side of the row ops: a row in registers, its loads, reductions and elementwise maths.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/types.h"
#include "cuda/launch.h"
#include "cuda/start.cuh"

namespace fastbert::cuda {

constexpr unsigned full_mask = 0xffffffffu;

// What all lanes of a warp hold, said so that the compiler knows: descriptors and addresses of
// barriers then live in uniform registers, instead of being moved there (R2UR) before every use.
__device__ inline int uniform(int x) { return __shfl_sync(full_mask, x, 0); }

// Element types as the hardware converts them; storage is that of types.h.
template <DType>
struct Element;
template <>
struct Element<DType::f32> {
    using type = float;
    static __device__ float widen(float x) { return x; }
    static __device__ float narrow(float x) { return x; }
};
template <>
struct Element<DType::bf16> {
    using type = __nv_bfloat16;
    static __device__ float widen(type x) { return __bfloat162float(x); }
    static __device__ type narrow(float x) { return __float2bfloat16_rn(x); }
};
template <>
struct Element<DType::f16> {
    using type = __half;
    static __device__ float widen(type x) { return __half2float(x); }
    static __device__ type narrow(float x) { return __float2half_rn(x); }
};

// `count` elements from p as float32, in one 16-byte access when WIDE; zeros past `available`.
template <DType D, bool WIDE, int count = 16 / size_of(D)>
__device__ void load(const void* base, index_t offset, index_t available, float (&out)[count]) {
    using E = Element<D>;
    const auto* p = static_cast<const typename E::type*>(base) + offset;
    if constexpr (WIDE) {
        // All or nothing: aligned rows hold whole pieces.
        if (available > 0) {
            const uint4 raw = *reinterpret_cast<const uint4*>(p);
            const auto* element = reinterpret_cast<const typename E::type*>(&raw);
#pragma unroll
            for (int i = 0; i < count; ++i) out[i] = E::widen(element[i]);
        } else {
#pragma unroll
            for (int i = 0; i < count; ++i) out[i] = 0.0f;
        }
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) out[i] = i < available ? E::widen(p[i]) : 0.0f;
    }
}

template <DType D, bool WIDE, int count = 16 / size_of(D)>
__device__ void store(void* base, index_t offset, index_t available, const float (&value)[count]) {
    using E = Element<D>;
    auto* p = static_cast<typename E::type*>(base) + offset;
    if constexpr (WIDE) {
        if (available > 0) {
            uint4 raw;
            auto* element = reinterpret_cast<typename E::type*>(&raw);
#pragma unroll
            for (int i = 0; i < count; ++i) element[i] = E::narrow(value[i]);
            *reinterpret_cast<uint4*>(p) = raw;
        }
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (i < available) p[i] = E::narrow(value[i]);
        }
    }
}

// The part of a row that one lane holds: pieces of 16 bytes, 32 * warps lanes apart.
template <DType D>
struct RowPart {
    static constexpr int piece = 16 / size_of(D);
    static constexpr int pieces = elements_per_warp / 32 / piece;
    float value[pieces][piece];
};

// Where a lane's pieces lie, and how lanes that share a row combine.
template <DType D>
struct RowLane {
    index_t row;
    index_t width;
    int lane;   // among the lanes of the row
    int lanes;  // of the row

    __device__ RowLane(index_t width, int warps_per_row, int rows_per_block)
        : row(static_cast<index_t>(blockIdx.x) * rows_per_block +
              threadIdx.x / (32 * warps_per_row)),
          width(width),
          lane(threadIdx.x % (32 * warps_per_row)),
          lanes(32 * warps_per_row) {}

    __device__ index_t first(int piece) const {
        return (static_cast<index_t>(piece) * lanes + lane) * RowPart<D>::piece;
    }
    __device__ index_t available(int piece) const { return width - first(piece); }

    // Combines over the row in a fixed order. Every thread of the block must call it.
    template <typename Combine>
    __device__ float all(float x, Combine combine) const {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            x = combine(x, __shfl_xor_sync(full_mask, x, step));
        }
        if (lanes > 32) {
            __shared__ float partial[32];
            __syncthreads();
            if (lane % 32 == 0) partial[lane / 32] = x;
            __syncthreads();
            x = partial[0];
            for (int warp = 1; warp < lanes / 32; ++warp) x = combine(x, partial[warp]);
        }
        return x;
    }
    __device__ float sum(float x) const {
        return all(x, [](float a, float b) { return a + b; });
    }
};

// value := LayerNorm(value) and stores it. Two passes over registers for the variance.
template <DType D, bool WIDE>
__device__ void normalise_and_store(const RowLane<D>& at, RowPart<D>& part, const void* weight,
                                    const void* bias, float eps, void* out, index_t out_offset,
                                    bool keep) {
    using Part = RowPart<D>;
    float total = 0.0f;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) total += part.value[p][i];
    }
    const float inverse_width = 1.0f / static_cast<float>(at.width);
    const float mean = at.sum(total) * inverse_width;
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) {
            const float centred = i < at.available(p) ? part.value[p][i] - mean : 0.0f;
            part.value[p][i] = centred;
            squares = fmaf(centred, centred, squares);
        }
    }
    const float scale = 1.0f / sqrtf(at.sum(squares) * inverse_width + eps);
    if (!keep) return;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        float w[Part::piece], b[Part::piece];
        load<D, WIDE>(weight, at.first(p), at.available(p), w);
        load<D, WIDE>(bias, at.first(p), at.available(p), b);
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) {
            part.value[p][i] = fmaf(part.value[p][i] * scale, w[i], b[i]);
        }
        store<D, WIDE>(out, out_offset + at.first(p), at.available(p), part.value[p]);
    }
}

// Calls f.operator()<DType, bool>() for a run-time dtype and alignment.
template <typename F>
void dispatch(DType dtype, bool wide, F f) {
    const auto by_width = [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        if (wide) {
            f(std::integral_constant<DType, D>{}, std::true_type{});
        } else {
            f(std::integral_constant<DType, D>{}, std::false_type{});
        }
    };
    switch (dtype) {
        case DType::bf16:
            return by_width(std::integral_constant<DType, DType::bf16>{});
        case DType::f16:
            return by_width(std::integral_constant<DType, DType::f16>{});
        default:
            return by_width(std::integral_constant<DType, DType::f32>{});
    }
}

}  // namespace fastbert::cuda
