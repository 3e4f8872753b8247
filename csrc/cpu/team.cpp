#include "cpu/team.h"

#include <string>

#include "common/check.h"
#include "cpu/isa.h"

namespace fastbert {
namespace {

constexpr int kMostThreads = 1024;  // of the pool; each has its part of the arena

Operand quantise(const Team& team, const PackedProjection& p, const void* rows, DType dtype,
                 index_t stride, index_t count, const OperandRoom& room) {
    QuantizeArgs args;
    args.x = rows;
    args.dtype = dtype;
    args.x_stride = stride;
    args.rows = count;
    args.k = p.width;
    args.columns = p.columns();
    args.q = reinterpret_cast<std::uint8_t*>(room.rows);
    args.q_stride = gemm_friendly_stride(p.k, DType::u8);
    args.scale = room.scale;
    args.zero_point = room.zero_point;
    const QuantizeKernels& kernels = team.table.quantize;
    const bool halves = p.precision == Precision::w8a16;
    const auto kernel = (halves ? kernels.rows16 : kernels.rows)[static_cast<int>(dtype)];
    team.rows(count, [&](index_t first, index_t n, int) { kernel(args, first, n); });
    return {args.q, DType::u8, args.q_stride, args.scale, args.zero_point};
}

}  // namespace

int threads_of_pass(const char* owner, Isa packed_for, int threads) {
    if (active() != packed_for) {
        fail(owner, std::string("the weights were packed for ") + name_of(packed_for) + ", but " +
                        name_of(active()) + " is in use now; prepare the " + owner + " again.");
    }
    if (threads < 0 || threads > kMostThreads) {
        fail(owner, std::to_string(threads) + " threads were asked for; give 1 to " +
                        std::to_string(kMostThreads) + ", or 0 for as many as usual.");
    }
    return threads == 0 ? max_threads() : threads;
}

index_t operand_room(const PackedProjection& p, index_t rows) {
    switch (p.precision) {
        case Precision::f32:
            return 0;
        case Precision::bf16:
            return rows * row_bytes(p.k, DType::bf16);
        case Precision::int8:
            return rows * row_bytes(p.k, DType::u8);
        case Precision::w8a16:
            break;
    }
    return 2 * rows * row_bytes(p.k, DType::u8);
}

GemmArgs gemm_args(const PackedProjection& p, const Operand& x, index_t rows) {
    GemmArgs args;
    args.rows = rows;
    args.n = p.n;
    args.k = p.k;
    args.x = x.data;
    args.x_dtype = x.dtype;
    args.x_stride = x.stride;
    args.x_scale = x.scale;
    args.x_zero_point = x.zero_point;
    args.x_halves = p.precision == Precision::w8a16;
    args.packed = p.packed;
    args.streamed = p.streamed;
    args.w_scale = p.scale();
    if (p.biases.size() == 1) args.bias = p.biases[0].get();
    return args;
}

void Team::gemm(const PackedProjection& p, const GemmArgs& args) const {
    const index_t panels = p.panels(table.gemm);
    const auto range = [&, kernel = p.range_of(table.gemm)](const GemmArgs& g, index_t begin,
                                                            index_t end, char* scratch) {
        if (p.biases.size() <= 1) return kernel(g, 0, g.rows, begin, end, scratch);
        const auto parts = static_cast<index_t>(p.biases.size());
        GemmArgs own = g;
        while (begin < end) {
            const index_t part = begin * parts / panels;
            const index_t stop = std::min(end, panels / parts * (part + 1));
            own.bias = p.biases[part].get();
            own.bias_begin = p.n / parts * part;
            kernel(own, 0, g.rows, begin, stop, scratch);
            begin = stop;
        }
    };
    if (threads == 1) {
        range(args, 0, panels, gemm_scratch + worker * scratch_step);
        return;
    }
    const index_t parts = std::min<index_t>(panels, 2 * threads);
    parallel_for(parts, threads, [&](index_t task, int w) {
        // A thread's second part lies behind its first: weights are fetched a page ahead.
        const index_t part = parts < 2 * threads ? task
                             : task < threads    ? 2 * task
                                                 : 2 * (task - threads) + 1;
        range(args, panels * part / parts, panels * (part + 1) / parts,
              gemm_scratch + w * scratch_step);
    });
}

Operand Team::operand(const PackedProjection& p, const void* data, DType dtype, index_t stride,
                      index_t count, const OperandRoom& room) const {
    if (quantised(p.precision)) return quantise(*this, p, data, dtype, stride, count, room);
    if (p.operand_dtype() == dtype) return {data, dtype, stride};
    // Only float32 rows before a bfloat16 product are left.
    auto* const out = reinterpret_cast<bf16_t*>(room.rows);
    const index_t out_stride = gemm_friendly_stride(p.k, DType::bf16);
    const auto narrow = table.vec_math.narrow[static_cast<int>(DType::bf16)];
    const auto* const values = static_cast<const float*>(data);
    rows(count, [&](index_t first, index_t n, int) {
        for (index_t r = first; r < first + n; ++r) {
            narrow(values + r * stride, out + r * out_stride, p.k);
        }
    });
    return {out, DType::bf16, out_stride};
}

}  // namespace fastbert
