#include "cpu/projection.h"

#include <algorithm>

#include "common/check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fastbert {
namespace {

constexpr index_t kMaxWidth = index_t{1} << 20;

// Weights of a model that caches are taken to keep from pass to pass.
constexpr index_t kCached = index_t{16} << 20;

DType packed_dtype(const char* owner, Precision precision) {
    switch (precision) {
        case Precision::f32:
            return DType::f32;
        case Precision::bf16:
            return DType::bf16;
        case Precision::int8:
        case Precision::w8a16:
            return DType::s8;
    }
    fail(owner, "precision code " + std::to_string(static_cast<int>(precision)) +
                    " is unknown; the codes are 0 float32, 1 bfloat16, 2 int8, 3 int8 weights "
                    "with rows of 16 bits.");
}

DType packed_dtype(Precision precision) { return packed_dtype("projection", precision); }

// A floating weight in the type that is packed, rows without gaps.
std::vector<char> converted(const ProjectionSource& source, DType to) {
    const auto& math = active_kernels().vec_math;
    const index_t row_bytes = source.stride * size_of(source.dtype);
    std::vector<char> out(static_cast<std::size_t>(source.n * source.k * size_of(to)));
    std::vector<float> row(static_cast<std::size_t>(source.k));
    for (index_t r = 0; r < source.n; ++r) {
        math.widen[static_cast<int>(source.dtype)](
            static_cast<const char*>(source.weight) + r * row_bytes, row.data(), source.k);
        math.narrow[static_cast<int>(to)](row.data(), out.data() + r * source.k * size_of(to),
                                          source.k);
    }
    return out;
}

// Whole cache lines.
index_t in_lines(index_t bytes) { return (bytes + 63) / 64 * 64; }

void check_source(const char* owner, const std::string& what, const ProjectionSource& source,
                  index_t n, index_t k) {
    if (source.n != n || source.k != k) {
        fail(owner, "the " + what + " weight must have shape (" + std::to_string(n) + ", " +
                        std::to_string(k) + "), but it has (" + std::to_string(source.n) + ", " +
                        std::to_string(source.k) + ").");
    }
    check_matrix(owner, (what + " weight").c_str(), source.weight, n, k, source.stride);
    if (!quantised(source.precision)) {
        if (source.columns.factor != nullptr || source.columns.repeats > 0) {
            fail(owner, "only an int8 projection has a factor or repeated columns; the " + what +
                            " projection is not one.");
        }
        check_float_dtype(owner, (what + " weight").c_str(), source.dtype);
    } else if (source.dtype != DType::s8 || source.weight_scale == nullptr) {
        fail(owner, "an int8 projection takes int8 weights and their scales; the " + what +
                        " weight has dtype " + name_of(source.dtype) + ".");
    }
}

int bias_count(const char* owner, const std::string& what, const ProjectionSource& source,
               index_t columns) {
    const auto missing = [](const Param& p) { return p.data == nullptr; };
    const Param* const end = source.bias + ProjectionSource::kBiases;
    if (std::all_of(source.bias, end, missing)) return 0;
    if (std::all_of(source.bias + 1, end, missing)) return 1;
    if (std::any_of(source.bias, end, missing) ||
        source.n % (ProjectionSource::kBiases * columns) != 0) {
        fail(owner, "three biases are for three projections of whole panels; the " + what +
                        " projection does not consist of such.");
    }
    return ProjectionSource::kBiases;
}

}  // namespace

PackedProjection::PackedProjection(const char* owner, const char* what,
                                   const ProjectionSource& source, index_t outputs, index_t inputs)
    : n(outputs), k(inputs + source.columns.repeats), width(inputs), precision(source.precision) {
    check_input_columns(owner, source.columns, width);
    check_source(owner, what, source, n, k);
    packed_size = packed_bytes(active_kernels().gemm, packed_dtype(owner, precision), n, k);
    if (quantised(precision)) {
        weight_scale.assign(source.weight_scale, source.weight_scale + n);
        const InputColumns& c = source.columns;
        if (c.factor != nullptr) factor.assign(c.factor, c.factor + width);
        repeated.assign(c.repeated, c.repeated + c.repeats);
    }
    const auto& layout = gemm_layout(active_kernels().gemm, packed_dtype(owner, precision));
    const int count = bias_count(owner, what, source, layout.columns);
    for (int i = 0; i < count; ++i) {
        biases.emplace_back(owner, what, source.bias[i], n / count, true, active_kernels());
    }
}

void PackedProjection::pack(const ProjectionSource& source, char* into) {
    const DType to = packed_dtype(precision);
    ProjectionSource from = source;
    std::vector<char> copy;
    if (from.dtype != to) {
        copy = converted(source, to);
        from.weight = copy.data();
        from.dtype = to;
        from.stride = k;
    }
    auto* const out = reinterpret_cast<std::uint8_t*>(into);
    pack_weight(from.weight, from.dtype, n, k, from.stride, out, packed_size);
    packed = out;
}

DType PackedProjection::operand_dtype() const {
    return quantised(precision) ? DType::u8 : packed_dtype(precision);
}

GemmKernels::RangeFn PackedProjection::range_of(const GemmKernels& gemm) const {
    switch (precision) {
        case Precision::f32:
            return gemm.range_f32;
        case Precision::bf16:
            return gemm.range_bf16;
        case Precision::int8:
        case Precision::w8a16:
            break;
    }
    return gemm.range_s8;
}

index_t PackedProjection::panels(const GemmKernels& gemm) const {
    return gemm_panels(n, gemm_layout(gemm, packed_dtype(precision)));
}

index_t PackedProjection::scratch_bytes(index_t rows, const GemmKernels& gemm) const {
    GemmArgs args;
    args.rows = rows;
    args.n = n;
    args.k = k;
    args.packed = packed;
    args.x_dtype = operand_dtype();
    args.x_stride = gemm_friendly_stride(k, args.x_dtype);
    args.x_halves = precision == Precision::w8a16;
    return gemm_scratch_bytes(args, gemm);
}

PackedMemory::PackedMemory(const char* owner, const std::vector<ProjectionSize>& sizes)
    : owner_(owner), isa_(active()) {
    for (const ProjectionSize& size : sizes) {
        const DType to = packed_dtype(owner, size.precision);
        room_ += in_lines(packed_bytes(active_kernels().gemm, to, size.n, size.k));
    }
    bytes_.reserve(room_);
}

void PackedMemory::pack(PackedProjection& projection, const ProjectionSource& source) {
    check_isa();
    const index_t bytes = in_lines(projection.packed_size);
    if (bytes > room_ - used_) {
        fail(owner_, "a projection takes " + std::to_string(bytes) + " bytes, but of those that " +
                         "were announced " + std::to_string(room_ - used_) + " are left.");
    }
    projection.pack(source, bytes_.data() + used_);
    projection.streamed = room_ > kCached;
    used_ += bytes;
}

void PackedMemory::check_isa() const {
    if (active() == isa_) return;
    fail(owner_, std::string("the instruction set was changed from ") + name_of(isa_) + " to " +
                     name_of(active()) + " while weights were packed; prepare it again.");
}

void PackedMemory::check_full() const {
    check_isa();
    if (used_ == room_) return;
    fail(owner_, std::to_string(room_) + " bytes of projections were announced, but " +
                     std::to_string(used_) + " were packed.");
}

std::vector<float> widened(const char* owner, const char* what, const Param& param, index_t size) {
    check_float_dtype(owner, what, param.dtype);
    std::vector<float> values(static_cast<std::size_t>(size));
    active_kernels().vec_math.widen[static_cast<int>(param.dtype)](param.data, values.data(), size);
    return values;
}

void check_width(const char* owner, const char* what, index_t size) {
    if (size < 1 || size > kMaxWidth) {
        fail(owner, std::string(what) + " is " + std::to_string(size) +
                        "; it must lie between 1 and 2^20.");
    }
}

index_t row_bytes(index_t width, DType dtype) {
    return gemm_friendly_stride(width, dtype) * size_of(dtype);
}

}  // namespace fastbert
