#include "cpu/ops/gemm.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/check.h"
#include "cpu/aligned_bytes.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace fastbert {
namespace {

constexpr char kMagic[8] = "fbpack1";
constexpr index_t kMaxSize = index_t{1} << 40;  // keeps every product of two sizes below 2^63

[[noreturn]] void refuse(const std::string& sentence) { fail("gemm", sentence); }

bool is_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

index_t round_up(index_t value, index_t unit) { return (value + unit - 1) / unit * unit; }

// Rows a multiple of 2 KiB apart: the 14 rows of a tile share one or two of the L1 cache's 64 sets
// of 8 lines (measured: 72 to 79 % of the limit at 4 KiB against 97 % a line further).
bool collides(index_t stride_bytes) { return stride_bytes % 2048 == 0; }

index_t friendly_stride_bytes(index_t row_bytes) {
    const index_t stride = round_up(row_bytes, 64);
    return collides(stride) ? stride + 64 : stride;
}

void check_sizes(index_t n, index_t k, DType packed_dtype) {
    if (n < 1 || k < 1 || n > kMaxSize || k > kMaxSize || n > kMaxSize / k) {
        refuse("a weight of shape (" + std::to_string(n) + ", " + std::to_string(k) +
               ") cannot be packed; both sizes must be at least 1 and their product below 2^40");
    }
    if (packed_dtype == DType::s8 && k > kMaxInt8K) {
        refuse("int8 weights have " + std::to_string(k) +
               " input columns; sums in int32 are only " + "exact up to " +
               std::to_string(kMaxInt8K) + ", use a floating-point weight");
    }
}

PackedHeader make_header(const GemmKernels& kernels, DType packed_dtype, index_t n, index_t k) {
    check_sizes(n, k, packed_dtype);
    const GemmKernels::PanelLayout& layout = gemm_layout(kernels, packed_dtype);
    PackedHeader h{};
    std::memcpy(h.magic, kMagic, sizeof(kMagic));
    h.dtype = static_cast<std::int32_t>(packed_dtype);
    h.columns = layout.columns;
    h.group = layout.group;
    h.lane_bytes = layout.lane_bytes;
    h.n = n;
    h.k = k;
    const index_t panels = gemm_panels(n, layout);
    const index_t words = (k + layout.group - 1) / layout.group;
    h.bytes = static_cast<index_t>(sizeof(PackedHeader)) +
              panels * words * layout.columns * layout.lane_bytes;
    if (packed_dtype == DType::s8) h.bytes += round_up(panels * layout.columns * 4, 64);
    return h;
}

void check_stride(const char* what, index_t stride, index_t width, index_t rows) {
    if (stride < 0 || stride > kMaxSize || (rows > 1 && stride < width) ||
        (rows > 1 && stride > kMaxSize / rows)) {
        refuse(std::string(what) + " has row stride " + std::to_string(stride) + " for rows of " +
               std::to_string(width) + " elements; rows must not overlap");
    }
}

}  // namespace

GemmStaging gemm_staging(const GemmArgs& args, bool staged) {
    const bool widens = staged || args.x_dtype == DType::f16;
    const index_t x_rows = args.rows * gemm_planes(args);
    // A few rows never fill a set.
    if (!widens && (x_rows <= 4 || !collides(args.x_stride * size_of(args.x_dtype)))) {
        return {0, 0};
    }
    const index_t size = size_of(args.x_dtype);
    const index_t element = widens ? 2 * size : size;
    const index_t stride = friendly_stride_bytes(args.k * element);
    // Half of a 1 MiB L2, in pairs of tiles, and never so few rows that weights stream faster than
    // they are used.
    const index_t rows = std::clamp<index_t>((index_t{512} << 10) / stride / 28 * 28, 28, 224);
    return {std::min(rows, round_up(x_rows, 14)), stride};
}

index_t gemm_scratch_bytes(const GemmArgs& args, const GemmKernels& kernels) {
    const GemmStaging staging = gemm_staging(args, gemm_widens(args, kernels));
    index_t bytes = staging.rows * staging.stride_bytes;
    if (args.x_dtype == DType::u8 || args.x_dtype == DType::bf16) {
        const index_t rows = round_up(args.rows * gemm_planes(args), 32);
        bytes += std::min(rows, kernels.kept_rows) * kernels.kept_bytes;
    }
    return bytes;
}

index_t gemm_friendly_stride(index_t k, DType x_dtype) {
    const index_t element = size_of(x_dtype);
    return friendly_stride_bytes(k * element) / element;
}

index_t gemm_panels(index_t n, const GemmKernels::PanelLayout& layout) {
    return (n + layout.columns - 1) / layout.columns;
}

const GemmKernels::PanelLayout& gemm_layout(const GemmKernels& kernels, DType packed_dtype) {
    switch (packed_dtype) {
        case DType::f32:
            return kernels.f32;
        case DType::bf16:
            return kernels.bf16;
        case DType::s8:
            return kernels.s8;
        default:
            refuse(std::string("weights are packed as float32, bfloat16 or int8, not ") +
                   name_of(packed_dtype));
    }
}

index_t packed_bytes(const GemmKernels& kernels, DType packed_dtype, index_t n, index_t k) {
    return make_header(kernels, packed_dtype, n, k).bytes;
}

void pack_weight(const void* weight, DType w_dtype, index_t n, index_t k, index_t w_stride,
                 std::uint8_t* out, index_t bytes) {
    if (!is_float(w_dtype) && w_dtype != DType::s8) {
        refuse(std::string("a weight of ") + name_of(w_dtype) +
               " cannot be packed; float32, float16, bfloat16 or int8 can");
    }
    const GemmKernels& gemm = active_kernels().gemm;
    const DType packed_dtype = w_dtype == DType::f16 ? DType::f32 : w_dtype;
    const PackedHeader h = make_header(gemm, packed_dtype, n, k);
    check_stride("the weight", w_stride, k, n);
    if (weight == nullptr || out == nullptr) refuse("pack_weight was given a null pointer");
    if (bytes != h.bytes) {
        refuse("packed weights of shape (" + std::to_string(n) + ", " + std::to_string(k) +
               ") take " + std::to_string(h.bytes) + " bytes, but there is room for " +
               std::to_string(bytes));
    }
    ask_for_huge_pages(out, bytes);
    std::memcpy(out, &h, sizeof(h));
    parallel_for(gemm_panels(n, gemm_layout(gemm, packed_dtype)), [&](index_t panel, int) {
        gemm.pack(weight, w_dtype, w_stride, panel, panel + 1, out);
    });
}

DType packed_check(const std::uint8_t* packed, index_t bytes, index_t n, index_t k) {
    PackedHeader found{};
    if (packed == nullptr || bytes < static_cast<index_t>(sizeof(found))) {
        refuse("packed weights must be what linear_prepack returned, not " + std::to_string(bytes) +
               " bytes");
    }
    std::memcpy(&found, packed, sizeof(found));
    if (std::memcmp(found.magic, kMagic, sizeof(kMagic)) != 0) {
        refuse("packed weights must be what linear_prepack returned; these bytes do not begin so");
    }
    if (reinterpret_cast<std::uintptr_t>(packed) % 4 != 0) {
        refuse("packed weights must start at a multiple of 4 bytes");
    }
    if (found.n != n || found.k != k) {
        refuse("the packed weights have shape (" + std::to_string(found.n) + ", " +
               std::to_string(found.k) + "), but (" + std::to_string(n) + ", " + std::to_string(k) +
               ") is needed");
    }
    const DType dtype = static_cast<DType>(found.dtype);
    const PackedHeader due = make_header(active_kernels().gemm, dtype, n, k);
    if (found.columns != due.columns || found.group != due.group ||
        found.lane_bytes != due.lane_bytes) {
        refuse("the weights were packed for another instruction set (panels of " +
               std::to_string(found.columns) + " columns, words of " + std::to_string(found.group) +
               "; in use: " + std::to_string(due.columns) + ", " + std::to_string(due.group) +
               "); pack them again");
    }
    if (found.bytes != due.bytes || bytes != due.bytes) {
        refuse("packed weights of shape (" + std::to_string(n) + ", " + std::to_string(k) +
               ") are " + std::to_string(due.bytes) + " bytes, not " + std::to_string(bytes));
    }
    return dtype;
}

void gemm_check(const GemmArgs& g, DType packed_dtype) {
    if (g.rows < 0 || g.rows > kMaxSize || (g.rows > 0 && g.n > kMaxSize / g.rows)) {
        refuse("a gemm of " + std::to_string(g.rows) + " rows and " + std::to_string(g.n) +
               " columns is not possible");
    }
    check_sizes(g.n, g.k, packed_dtype);
    const bool fits = packed_dtype == DType::f32
                          ? g.x_dtype == DType::f32 || g.x_dtype == DType::f16
                      : packed_dtype == DType::bf16 ? g.x_dtype == DType::bf16
                                                    : g.x_dtype == DType::u8;
    if (!fits) {
        refuse(std::string("weights packed as ") + name_of(packed_dtype) +
               " cannot be multiplied with rows of " + name_of(g.x_dtype) +
               "; float32 weights take float32 or float16 rows, bfloat16 weights bfloat16 rows, " +
               "int8 weights quantised uint8 rows");
    }
    check_activation("gemm", g.activation);
    check_stride("x", g.x_stride, g.k, g.rows * gemm_planes(g));
    check_stride("out", g.out_stride, g.n, g.rows);
    if (g.residual != nullptr) check_stride("residual", g.residual_stride, g.n, g.rows);
    if (!is_float(g.out_dtype) || (g.residual != nullptr && !is_float(g.residual_dtype)) ||
        (g.bias != nullptr && !is_float(g.bias_dtype))) {
        refuse("bias, residual and out must be float32, bfloat16 or float16");
    }
    if (g.rows > 0 && (g.x == nullptr || g.out == nullptr)) refuse("x or out is a null pointer");
    if (packed_dtype == DType::s8 && g.rows > 0 &&
        (g.x_scale == nullptr || g.w_scale == nullptr ||
         (g.x_zero_point == nullptr && !g.x_halves))) {
        refuse("an int8 gemm needs the scales and zero points of its rows and columns");
    }
    if (g.x_halves && packed_dtype != DType::s8) {
        refuse("rows in two halves are for int8 weights only");
    }
}

}  // namespace fastbert
