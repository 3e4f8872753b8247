#include "cpu/encoder_weights.h"

#include <memory>
#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/encoder_memory.h"

namespace fastbert {
namespace encoder_detail {
namespace {

constexpr const char* kName = "encoder";
constexpr index_t kMaxWidth = index_t{1} << 20;

std::vector<float> widened(const char* what, const Param& param, index_t size) {
    check_float_dtype(kName, what, param.dtype);
    std::vector<float> values(static_cast<std::size_t>(size));
    active_kernels().vec_math.widen[static_cast<int>(param.dtype)](param.data, values.data(), size);
    return values;
}

DType packed_dtype(Precision precision) {
    switch (precision) {
        case Precision::f32:
            return DType::f32;
        case Precision::bf16:
            return DType::bf16;
        case Precision::int8:
            return DType::s8;
    }
    fail(kName, "precision code " + std::to_string(static_cast<int>(precision)) +
                    " is unknown; the codes are 0 float32, 1 bfloat16, 2 int8.");
}

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

void check_source(const std::string& what, const ProjectionSource& source, index_t n, index_t k) {
    if (source.n != n || source.k != k) {
        fail(kName, "the " + what + " weight must have shape (" + std::to_string(n) + ", " +
                        std::to_string(k) + "), but it has (" + std::to_string(source.n) + ", " +
                        std::to_string(source.k) + ").");
    }
    check_matrix(kName, (what + " weight").c_str(), source.weight, n, k, source.stride);
    if (source.precision != Precision::int8) {
        if (source.columns.factor != nullptr || source.columns.repeats > 0) {
            fail(kName, "only an int8 projection has a factor or repeated columns; the " + what +
                            " projection is not one.");
        }
        check_float_dtype(kName, (what + " weight").c_str(), source.dtype);
    } else if (source.dtype != DType::s8 || source.weight_scale == nullptr) {
        fail(kName, "an int8 projection takes int8 weights and their scales; the " + what +
                        " weight has dtype " + name_of(source.dtype) + ".");
    }
}

}  // namespace

PackedProjection::PackedProjection(const char* what, const ProjectionSource& source,
                                   index_t outputs, index_t inputs)
    : n(outputs), k(inputs + source.columns.repeats), width(inputs), precision(source.precision) {
    check_input_columns(kName, source.columns, width);
    check_source(what, source, n, k);
    packed_size = packed_bytes(active_kernels().gemm, packed_dtype(precision), n, k);
    if (precision == Precision::int8) {
        weight_scale.assign(source.weight_scale, source.weight_scale + n);
        const InputColumns& c = source.columns;
        if (c.factor != nullptr) factor.assign(c.factor, c.factor + width);
        repeated.assign(c.repeated, c.repeated + c.repeats);
    }
    if (source.bias.data != nullptr) bias_values = widened(what, source.bias, n);
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
    return precision == Precision::int8 ? DType::u8 : packed_dtype(precision);
}

GemmKernels::RangeFn PackedProjection::range_of(const GemmKernels& gemm) const {
    switch (precision) {
        case Precision::f32:
            return gemm.range_f32;
        case Precision::bf16:
            return gemm.range_bf16;
        case Precision::int8:
            break;
    }
    return gemm.range_s8;
}

index_t PackedProjection::panels(const GemmKernels& gemm) const {
    return gemm_panels(n, gemm_layout(gemm, packed_dtype(precision)));
}

Norm::Norm(const char* what, const NormSource& source, index_t hidden) : eps(source.eps) {
    check_eps(kName, eps);
    if (source.weight.data == nullptr || source.bias.data == nullptr) {
        fail(kName, std::string(what) + " has no weight or no bias.");
    }
    weight = widened(what, source.weight, hidden);
    bias = widened(what, source.bias, hidden);
}

Embedding::Embedding(const EmbeddingSource& given, index_t hidden) : source(given) {
    check_float_dtype(kName, "the tables", source.dtype);
    if (source.width < 1 || source.width > kMaxWidth) {
        fail(kName, "the tables are " + std::to_string(source.width) +
                        " wide; it must lie between 1 and 2^20.");
    }
    const auto check_table = [&](const char* what, const TableSource& table) {
        if (table.data == nullptr) return;
        check_size(kName, "entries of a table", table.entries);
        check_matrix(kName, what, table.data, table.entries, source.width, table.stride);
    };
    if (source.word.data == nullptr) fail(kName, "the table of words is missing.");
    check_table("word table", source.word);
    check_table("position table", source.position);
    check_table("type table", source.type);
    check_table("language table", source.language);
    norm = Norm("the norm of the embeddings", source.norm, source.width);
    if (source.projection.weight != nullptr) {
        projection = PackedProjection("projection", source.projection, hidden, source.width);
    } else if (source.width != hidden) {
        fail(kName, "tables " + std::to_string(source.width) + " wide need a projection to " +
                        std::to_string(hidden) + ".");
    }
}

Weights::Weights(const EncoderSource& source) : shape(source.shape), isa(active()) {
    const std::vector<BlockSource>& sources = source.blocks;
    const auto positive = [](const char* what, index_t size) {
        if (size < 1 || size > kMaxWidth) {
            fail(kName, std::string(what) + " is " + std::to_string(size) +
                            "; it must lie between 1 and 2^20.");
        }
    };
    positive("hidden", shape.hidden);
    positive("num_heads", shape.num_heads);
    positive("head_dim", shape.head_dim);
    positive("intermediate", shape.intermediate);
    check_activation(kName, shape.activation);
    if (shape.attention != DType::f32 && shape.attention != DType::bf16) {
        fail(kName, "attention is held in float32 or bfloat16, not in " +
                        std::string(name_of(shape.attention)) + ".");
    }
    const index_t width = shape.num_heads * shape.head_dim;
    std::vector<std::pair<PackedProjection*, const ProjectionSource*>> unpacked;
    blocks.reserve(sources.size());
    for (const BlockSource& stored : sources) {
        if (shape.attention == DType::bf16 && stored.out.precision == Precision::f32) {
            fail(kName, "attention in bfloat16 cannot feed a float32 output projection.");
        }
        blocks.emplace_back();
        PackedBlock& b = blocks.back();
        b.qkv = PackedProjection("qkv", stored.qkv, 3 * width, shape.hidden);
        b.out = PackedProjection("out", stored.out, shape.hidden, width);
        b.attention_norm = Norm("attention_norm", stored.attention_norm, shape.hidden);
        b.up = PackedProjection("up", stored.up, shape.intermediate, shape.hidden);
        b.down = PackedProjection("down", stored.down, shape.hidden, shape.intermediate);
        b.output_norm = Norm("output_norm", stored.output_norm, shape.hidden);
        unpacked.insert(unpacked.end(), {{&b.qkv, &stored.qkv},
                                         {&b.out, &stored.out},
                                         {&b.up, &stored.up},
                                         {&b.down, &stored.down}});
    }
    if (source.embedding != nullptr) {
        auto made = std::make_unique<Embedding>(*source.embedding, shape.hidden);
        if (made->projected()) {
            unpacked.insert(unpacked.begin(), {&made->projection, &source.embedding->projection});
        }
        embedding = std::move(made);
    }
    if (source.pooler != nullptr) {
        positive("the pooler's width", source.pooler->n);
        auto made = std::make_unique<PackedProjection>("pooler", *source.pooler, source.pooler->n,
                                                       shape.hidden);
        if (made->precision == Precision::int8) {
            fail(kName, "the pooler's weights must be floating-point.");
        }
        unpacked.emplace_back(made.get(), source.pooler);
        pooler = std::move(made);
    }

    const auto room = [](const PackedProjection& p) { return (p.packed_size + 63) / 64 * 64; };
    index_t bytes = 0;
    for (const auto& [projection, stored] : unpacked) bytes += room(*projection);
    packed.reserve(bytes);
    char* next = packed.data();
    for (const auto& [projection, stored] : unpacked) {
        projection->pack(*stored, next);
        next += room(*projection);
    }
}

std::vector<const PackedProjection*> Weights::projections() const {
    std::vector<const PackedProjection*> all;
    for (const PackedBlock& block : blocks) {
        all.insert(all.end(), {&block.qkv, &block.out, &block.up, &block.down});
    }
    if (embedding != nullptr && embedding->projected()) all.push_back(&embedding->projection);
    if (pooler != nullptr) all.push_back(pooler.get());
    return all;
}

}  // namespace encoder_detail
}  // namespace fastbert
