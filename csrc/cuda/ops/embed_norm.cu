#include <string>
#include <type_traits>

#include "common/check.h"
#include "cuda/ops.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

template <DType D, bool WIDE>
__global__ void embed_norm_kernel(EmbedNorm args, int warps_per_row, int rows_per_block) {
    const RowLane<D> at(args.width, warps_per_row, rows_per_block);
    const bool keep = at.row < args.tokens;
    const index_t token = keep ? at.row : 0;
    RowPart<D> part;
    using Part = RowPart<D>;
#pragma unroll
    for (int p = 0; p < Part::pieces; ++p) {
        if (args.embeds != nullptr) {
            load<D, WIDE>(args.embeds, token * args.embeds_stride + at.first(p), at.available(p),
                          part.value[p]);
        } else {
#pragma unroll
            for (int i = 0; i < Part::piece; ++i) part.value[p][i] = 0.0f;
        }
    }
    // One 32-bit word holds it; a NaN added to one element would reach the row through its mean.
    bool unknown = false;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
        if (args.gathers[g].ids == nullptr) continue;
        const std::int64_t id = args.gathers[g].ids[token];
        const bool known = id >= 0 && id < args.gathers[g].entries;
        unknown |= !known;
        const index_t base = (known ? id : 0) * args.width;
#pragma unroll
        for (int p = 0; p < Part::pieces; ++p) {
            float v[Part::piece];
            load<D, WIDE>(args.gathers[g].table, base + at.first(p), at.available(p), v);
#pragma unroll
            for (int i = 0; i < Part::piece; ++i) part.value[p][i] += v[i];
        }
    }
    if (unknown) part.value[0][0] = __int_as_float(0x7fffffff);
    normalise_and_store<D, WIDE>(at, part, args.weight, args.bias, args.eps, args.out,
                                 token * args.width, keep);
}

}  // namespace

void embed_norm(const EmbedNorm& args, const Target& target) {
    const char* op = "embed_layer_norm";
    check_float_dtype(op, "weight", args.dtype);
    check_eps(op, args.eps);
    const RowConfig config = row_config(op, args.tokens, args.width);
    check_matrix(op, "weight", args.weight, 1, args.width, args.width);
    check_matrix(op, "bias", args.bias, 1, args.width, args.width);
    check_matrix(op, "out", args.out, args.tokens, args.width, args.width);
    bool wide = rows_aligned(args.weight, args.width, args.width, args.dtype) &&
                rows_aligned(args.bias, args.width, args.width, args.dtype) &&
                rows_aligned(args.out, args.width, args.width, args.dtype);
    if (args.embeds != nullptr) {
        check_matrix(op, "inputs_embeds", args.embeds, args.tokens, args.width, args.embeds_stride);
        wide = wide && rows_aligned(args.embeds, args.embeds_stride, args.width, args.dtype);
    } else if (args.gathers[0].ids == nullptr && args.tokens > 0) {
        fail(op, "there is neither inputs_embeds nor a first table; one of them is needed.");
    }
    for (const Gather& gather : args.gathers) {
        if (gather.ids == nullptr) continue;
        if (gather.entries < 1) fail(op, "a table has no rows; it must have at least one.");
        check_matrix(op, "a table", gather.table, gather.entries, args.width, args.width);
        wide = wide && rows_aligned(gather.table, args.width, args.width, args.dtype);
    }
    if (args.tokens == 0) return;
    const Launch launch(op, target.device);
    dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
        start(embed_norm_kernel<dtype.value, is_wide.value>, dim3(config.blocks), config.threads(),
              target.stream, args, config.warps_per_row, config.rows_per_block);
    });
    launch.check();
}

}  // namespace fastbert::cuda
