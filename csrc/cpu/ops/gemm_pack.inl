// Weights into panels (layout: gemm.h). Runs once per model, so plain loops over the destination.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/ops/gemm.h"
#include "cpu/vec/dot.h"

namespace fastbert {
namespace {

template <typename D>
constexpr GemmKernels::PanelLayout layout_of() {
    return {2 * D::kLanes, D::kGroup, D::kLaneBytes};
}

inline index_t column_sum_bytes(const PackedHeader& h) {
    if (static_cast<DType>(h.dtype) != DType::s8) return 0;
    const index_t panels = (h.n + h.columns - 1) / h.columns;
    return (panels * h.columns * 4 + 63) / 64 * 64;
}

inline index_t panel_bytes(const PackedHeader& h) {
    return (h.k + h.group - 1) / h.group * h.columns * h.lane_bytes;
}

inline PackedHeader header_of(const std::uint8_t* packed) {
    PackedHeader h;
    std::memcpy(&h, packed, sizeof(h));
    return h;
}

inline void pack_element(const float* w, std::uint8_t* out) { std::memcpy(out, w, 4); }
inline void pack_element(const bf16_t* w, std::uint8_t* out) { std::memcpy(out, w, 2); }
inline void pack_element(const std::int8_t* w, std::uint8_t* out) { std::memcpy(out, w, 1); }
inline void pack_element(const f16_t* w, std::uint8_t* out) {
    float wide[F32::lanes];
    store(static_cast<float*>(wide), load_n(w, 1));
    std::memcpy(out, wide, 4);
}

template <typename T>
inline void pack_panel(const T* w, index_t w_stride, const PackedHeader& h, index_t panel,
                       std::uint8_t* out) {
    const int element = h.lane_bytes / h.group;
    const index_t words = (h.k + h.group - 1) / h.group;
    for (index_t word = 0; word < words; ++word) {
        for (int c = 0; c < h.columns; ++c) {
            const index_t column = panel * h.columns + c;
            for (int g = 0; g < h.group; ++g, out += element) {
                const index_t k = word * h.group + g;
                if (column < h.n && k < h.k) {
                    pack_element(w + column * w_stride + k, out);
                } else {
                    std::memset(out, 0, static_cast<std::size_t>(element));
                }
            }
        }
    }
}

inline void pack(const void* w, DType w_dtype, index_t w_stride, index_t panel_begin,
                 index_t panel_end, std::uint8_t* out) {
    const PackedHeader h = header_of(out);
    std::uint8_t* sums = out + sizeof(PackedHeader);
    std::uint8_t* panels = sums + column_sum_bytes(h);
    for (index_t p = panel_begin; p < panel_end; ++p) {
        std::uint8_t* to = panels + p * panel_bytes(h);
        switch (w_dtype) {
            case DType::f16:
                pack_panel(static_cast<const f16_t*>(w), w_stride, h, p, to);
                break;
            case DType::bf16:
                pack_panel(static_cast<const bf16_t*>(w), w_stride, h, p, to);
                break;
            case DType::s8: {
                const auto* bytes = static_cast<const std::int8_t*>(w);
                pack_panel(bytes, w_stride, h, p, to);
                for (int c = 0; c < h.columns; ++c) {
                    const index_t column = p * h.columns + c;
                    std::int32_t sum = 0;
                    for (index_t k = 0; column < h.n && k < h.k; ++k) {
                        sum += bytes[column * w_stride + k];
                    }
                    std::memcpy(sums + column * 4, &sum, 4);
                }
                break;
            }
            default:
                pack_panel(static_cast<const float*>(w), w_stride, h, p, to);
                break;
        }
    }
}

}  // namespace
}  // namespace fastbert
