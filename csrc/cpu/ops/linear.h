// The threaded gemms: what Python's `linear` and `int8_linear` call. The prepared encoder calls
// GemmKernels' range functions itself, inside its own tasks.
#pragma once

#include "cpu/ops/gemm.h"
#include "cpu/ops/quantize.h"

namespace fastbert {

// out = activation(x @ W^T + bias) + residual over packed float weights of `packed_size` bytes.
// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void linear(const GemmArgs& args, index_t packed_size);

// The same over packed int8 weights, args.w_scale: (n). A float32, bfloat16 or float16 x is
// quantised row by row (quantize.h) on the way in; x_scale and x_zero_point must then be null. A
// uint8 x was quantised before, and they say how. args.k counts the columns of x; the packed
// weights have columns.repeats more. `columns` are for a floating x only.
void int8_linear(const GemmArgs& args, index_t packed_size, const InputColumns& columns = {});

// The same with rows that keep 16 bits (quantize_rows16), for weights alone in 8: a value
// is off by at most 1/32639 of its row's largest, against 1/255. x is float32, bfloat16 or float16,
// as are bias, residual and out, each independently; the weights are those that int8_linear takes,
// packed once by pack_weight. A row that holds a NaN or an infinity comes out as NaN. Threaded: to
// be called from outside of parallel_for.
//
// A prepared model calls this once for each projection of a layer, or, inside tasks of its own and
// with rows that several projections share quantised once:
//
//   kernels.quantize.rows16[dtype of x](q, first, count);        // q.q: (2 * rows, k)
//   g.x = q.q; g.x_dtype = DType::u8; g.x_stride = q.q_stride; g.x_scale = q.scale;
//   g.x_halves = true;
//   kernels.gemm.range_s8(g, row_begin, row_end, panel_begin, panel_end, scratch);
//
// with q_stride = gemm_friendly_stride(k, DType::u8) and scratch of gemm_scratch_bytes(g, kernels).
void linear_w8a16(const GemmArgs& args, index_t packed_size, const InputColumns& columns = {});

}  // namespace fastbert
