#include <type_traits>

#include "common/check.h"
#include "cuda/ops.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

template <DType D, bool WIDE>
__global__ void quantize_rows_kernel(QuantizeRows args, int warps_per_row, int rows_per_block) {
    const RowLane<D> at(args.width, warps_per_row, rows_per_block);
    const bool keep = at.row < args.rows;
    const index_t row = keep ? at.row : 0;
    RowPart<D> part;
    using Part = RowPart<D>;
    // Elements past the row load as 0, which the range includes anyway.
    float low = 0.0f, high = 0.0f, invalid = 0.0f;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        load<D, WIDE>(args.x, row * args.x_stride + at.first(p), at.available(p), part.value[p]);
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) {
            low = fminf(low, part.value[p][i]);
            high = fmaxf(high, part.value[p][i]);
            if (isnan(part.value[p][i])) invalid = 1.0f;
        }
    }
    low = at.all(low, [](float a, float b) { return fminf(a, b); });
    high = at.all(high, [](float a, float b) { return fmaxf(a, b); });
    // The hardware's minimum drops NaN; a row that has one must not look finite.
    invalid = at.all(invalid, [](float a, float b) { return fmaxf(a, b); });
    float scale = __fdiv_rn(high - low, 255.0f);
    if (scale == 0.0f) scale = 1.0f;
    if (invalid != 0.0f) scale = __int_as_float(0x7fffffff);
    float zero_point = __fdiv_rn(-low, scale);
    zero_point = isfinite(zero_point) ? rintf(zero_point) : 0.0f;
    if (!keep) return;
    if (at.lane == 0) {
        args.scale[row] = scale;
        args.zero_point[row] = static_cast<std::int32_t>(zero_point);
    }
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        std::uint8_t q[Part::piece];
#pragma unroll
        for (int i = 0; i < Part::piece; ++i) {
            float step = __fdiv_rn(part.value[p][i], scale);
            step = isfinite(step) ? rintf(step) : 0.0f;
            q[i] = static_cast<std::uint8_t>(fminf(fmaxf(step + zero_point, 0.0f), 255.0f));
        }
        const index_t first = row * args.width + at.first(p);
        if constexpr (WIDE) {
            // piece bytes, a power of two: the row starts on a multiple of it.
            if (at.available(p) > 0) {
                using Word = std::conditional_t<Part::piece == 8, uint2, unsigned>;
                Word word;
                auto* byte = reinterpret_cast<std::uint8_t*>(&word);
#pragma unroll
                for (int i = 0; i < Part::piece; ++i) byte[i] = q[i];
                *reinterpret_cast<Word*>(args.q + first) = word;
            }
        } else {
#pragma unroll
            for (int i = 0; i < Part::piece; ++i) {
                if (i < at.available(p)) args.q[first + i] = q[i];
            }
        }
    }
}

}  // namespace

void quantize_rows(const QuantizeRows& args, const Target& target) {
    const char* op = "quantize_rows";
    check_float_dtype(op, "x", args.dtype);
    const RowConfig config = row_config(op, args.rows, args.width);
    check_matrix(op, "x", args.x, args.rows, args.width, args.x_stride);
    check_matrix(op, "q", args.q, args.rows, args.width, args.width);
    check_matrix(op, "scale", args.scale, 1, args.rows, args.rows);
    check_matrix(op, "zero_point", args.zero_point, 1, args.rows, args.rows);
    if (args.rows == 0) return;
    // q is written in words of one byte per element of a 16-byte piece.
    const index_t piece = 16 / size_of(args.dtype);
    const bool wide = rows_aligned(args.x, args.x_stride, args.width, args.dtype) &&
                      reinterpret_cast<std::uintptr_t>(args.q) % piece == 0;
    const Launch launch(op, target.device);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(quantize_rows_kernel<dtype.value, is_wide.value>, dim3(config.blocks),
              config.threads(), target.stream, args, config.warps_per_row, config.rows_per_block);
    });
    launch.check();
}

}  // namespace fastbert::cuda
