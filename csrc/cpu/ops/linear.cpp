#include "cpu/ops/linear.h"

#include <algorithm>
#include <vector>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

// How a gemm is cut into tasks: row blocks times groups of panels.
struct Split {
    index_t row_blocks;
    index_t groups;
    index_t panel_unit;  // groups begin at multiples of this
};

// Cycles a core needs, roughly: 16 words of a dot a cycle, or 8 bytes of weights from the cache.
index_t estimated_cycles(const GemmArgs& g, const GemmKernels::PanelLayout& layout) {
    const index_t words = (g.k + layout.group - 1) / layout.group;
    return std::max(g.rows * gemm_planes(g) * words, words * 8) * g.n / 16;
}

Split split(const GemmArgs& g, const GemmKernels::PanelLayout& layout, bool staged, int threads) {
    // Past 224 rows a panel's trip from L3 to L2 is already hidden behind 16 tiles.
    constexpr index_t block_rows = 224;
    // A quarter of what waking a sleeping thread may take; smaller tasks are not worth handing out.
    constexpr index_t least_cycles = 30000;
    Split s;
    const index_t x_rows = g.rows * gemm_planes(g);
    s.row_blocks = (x_rows + block_rows - 1) / block_rows;
    // One or two rows take four panels at once; staged rows are copied again in every group.
    s.panel_unit = staged ? 8 : x_rows <= 2 ? 4 : 1;
    const index_t units = (gemm_panels(g.n, layout) + s.panel_unit - 1) / s.panel_unit;
    const index_t worth = std::max<index_t>(1, estimated_cycles(g, layout) / least_cycles);
    // Four tasks a thread even out threads that are interrupted.
    const index_t wanted = threads == 1 ? 1 : std::min<index_t>(4 * threads, worth);
    s.groups = std::clamp<index_t>((wanted + s.row_blocks - 1) / s.row_blocks, 1, units);
    return s;
}

void multiply(const GemmArgs& g, DType packed_dtype) {
    const GemmKernels& gemm = active_kernels().gemm;
    const GemmKernels::PanelLayout& layout = gemm_layout(gemm, packed_dtype);
    const auto range = packed_dtype == DType::f32    ? gemm.range_f32
                       : packed_dtype == DType::bf16 ? gemm.range_bf16
                                                     : gemm.range_s8;
    const index_t panels = gemm_panels(g.n, layout);
    const index_t scratch_floats = (gemm_scratch_bytes(g, gemm) + 3) / 4;
    const int threads = max_threads();
    const bool staged = gemm_staging(g, gemm_widens(g, gemm)).rows > 0;
    const Split s = split(g, layout, staged, threads);
    const index_t units = (panels + s.panel_unit - 1) / s.panel_unit;
    parallel_for(s.row_blocks * s.groups, threads, [&](index_t task, int) {
        const index_t block = task / s.groups, group = task % s.groups;
        const index_t first = part_begin(units, s.groups, group) * s.panel_unit;
        const index_t last =
            std::min(panels, part_begin(units, s.groups, group + 1) * s.panel_unit);
        void* scratch = scratch_floats > 0 ? thread_scratch(scratch_floats) : nullptr;
        range(g, part_begin(g.rows, s.row_blocks, block),
              part_begin(g.rows, s.row_blocks, block + 1), first, last, scratch);
    });
}

void check_weight(const char* op, const GemmArgs& args, index_t packed_size,
                  const InputColumns& columns) {
    check_input_columns(op, columns, args.k);
    if (packed_check(args.packed, packed_size, args.n, args.k + columns.repeats) != DType::s8) {
        fail(op, "the packed weights are floating-point; use linear for them.");
    }
}

// Over rows quantised here, to 16 bits in two halves or to 8.
void quantised_linear(const char* op, const GemmArgs& args, const InputColumns& columns,
                      bool halves) {
    check_float_dtype(op, "x", args.x_dtype);
    check_size(op, "rows", args.rows);
    check_matrix(op, "x", args.x, args.rows, args.k, args.x_stride);
    if (args.x_scale != nullptr || args.x_zero_point != nullptr) {
        fail(op, "x is quantised here; its scales and zero points cannot be given.");
    }
    const index_t inner = args.k + columns.repeats;
    const index_t planes = halves ? 2 : 1;
    // Blocks bound the memory that quantised rows take, and keep them in L2 and L3.
    constexpr index_t block_rows = 1024;
    const index_t q_stride = gemm_friendly_stride(inner, DType::u8);
    const index_t most = std::min(args.rows, block_rows);
    thread_local std::vector<std::uint8_t> quantised;
    thread_local std::vector<float> scales;
    thread_local std::vector<std::int32_t> zero_points;
    const auto grow = [](auto& v, index_t size) {
        if (static_cast<index_t>(v.size()) < size) v.resize(static_cast<std::size_t>(size));
    };
    grow(quantised, planes * most * q_stride);
    grow(scales, most);
    grow(zero_points, most);

    GemmArgs g = args;
    g.k = inner;
    g.x = quantised.data();
    g.x_dtype = DType::u8;
    g.x_stride = q_stride;
    g.x_halves = halves;
    g.x_scale = scales.data();
    g.x_zero_point = zero_points.data();
    gemm_check(g, DType::s8);
    for (index_t first = 0; first < args.rows; first += block_rows) {
        g.rows = std::min(block_rows, args.rows - first);
        QuantizeArgs q;
        q.x = static_cast<const std::uint8_t*>(args.x) +
              first * args.x_stride * size_of(args.x_dtype);
        q.dtype = args.x_dtype;
        q.rows = g.rows;
        q.k = args.k;
        q.x_stride = args.x_stride;
        q.columns = columns;
        q.q = quantised.data();
        q.q_stride = q_stride;
        q.scale = scales.data();
        q.zero_point = zero_points.data();
        halves ? quantize_rows16(q) : quantize_rows(q);
        if (args.residual != nullptr) {
            g.residual = static_cast<const std::uint8_t*>(args.residual) +
                         first * args.residual_stride * size_of(args.residual_dtype);
        }
        g.out = static_cast<std::uint8_t*>(args.out) +
                first * args.out_stride * size_of(args.out_dtype);
        multiply(g, DType::s8);
    }
}

}  // namespace

void linear(const GemmArgs& args, index_t packed_size) {
    const DType packed_dtype = packed_check(args.packed, packed_size, args.n, args.k);
    if (packed_dtype == DType::s8) {
        fail("linear", "the packed weights are int8; use int8_linear for them.");
    }
    gemm_check(args, packed_dtype);
    if (args.rows > 0) multiply(args, packed_dtype);
}

void int8_linear(const GemmArgs& args, index_t packed_size, const InputColumns& columns) {
    const char* op = "int8_linear";
    check_weight(op, args, packed_size, columns);
    if (args.x_dtype == DType::u8) {
        if (columns.factor != nullptr || columns.repeats > 0) {
            fail(op, "x is quantised already; a factor and repeated columns cannot be given.");
        }
        gemm_check(args, DType::s8);
        if (args.rows > 0) multiply(args, DType::s8);
        return;
    }
    quantised_linear(op, args, columns, false);
}

void linear_w8a16(const GemmArgs& args, index_t packed_size, const InputColumns& columns) {
    const char* op = "linear_w8a16";
    check_weight(op, args, packed_size, columns);
    quantised_linear(op, args, columns, true);
}

}  // namespace fastbert
