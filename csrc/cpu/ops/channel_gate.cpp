#include "cpu/ops/channel_gate.h"

#include "cpu/ops/driver.h"

namespace fastbert {

void channel_gate(const GateArgs& args) {
    const char* op = "channel_gate";
    check_float_dtype(op, "x", args.dtype);
    check_size(op, "batch", args.batch);
    check_size(op, "places", args.places);
    check_size(op, "channels", args.channels);
    const index_t rows = args.batch * args.places;
    check_matrix(op, "x", args.x, rows, args.channels, args.channels);
    check_matrix(op, "gates", args.gates, args.batch, args.channels, args.channels);
    check_matrix(op, "out", args.out, rows, args.channels, args.channels);
    if (rows == 0 || args.channels == 0) return;
    const ChannelGateKernels& kernels = active_kernels().channel_gate;
    const int type = static_cast<int>(args.dtype);
    float* factors = thread_scratch(args.batch * args.channels);
    kernels.factors[type](args, factors);
    for_row_blocks(
        rows, 2 * args.channels * size_of(args.dtype),
        [&](index_t first, index_t count) { kernels.rows[type](args, factors, first, count); });
}

}  // namespace fastbert
