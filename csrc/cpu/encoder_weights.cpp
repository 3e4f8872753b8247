#include "cpu/encoder_weights.h"

#include <memory>
#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fastbert {
namespace encoder_detail {
namespace {

constexpr const char* kName = "encoder";

}  // namespace

Norm::Norm(const char* what, const NormSource& source, index_t hidden) : eps(source.eps) {
    check_eps(kName, eps);
    if (source.weight.data == nullptr || source.bias.data == nullptr) {
        fail(kName, std::string(what) + " has no weight or no bias.");
    }
    weight = Float32Param(kName, what, source.weight, hidden, true, active_kernels());
    bias = Float32Param(kName, what, source.bias, hidden, true, active_kernels());
}

Embedding::Embedding(const EmbeddingSource& given, index_t hidden) : source(given) {
    check_float_dtype(kName, "the tables", source.dtype);
    check_width(kName, "the width of the tables", source.width);
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
        projection = PackedProjection(kName, "projection", source.projection, hidden, source.width);
    } else if (source.width != hidden) {
        fail(kName, "tables " + std::to_string(source.width) + " wide need a projection to " +
                        std::to_string(hidden) + ".");
    }
}

Weights::Weights(const EncoderShape& given, const std::vector<ProjectionSize>& sizes)
    : shape(given), isa(active()), packed(kName, sizes) {
    check_width(kName, "hidden", shape.hidden);
    check_width(kName, "num_heads", shape.num_heads);
    check_width(kName, "head_dim", shape.head_dim);
    check_width(kName, "intermediate", shape.intermediate);
    check_activation(kName, shape.activation);
    if (shape.attention != DType::f32 && shape.attention != DType::bf16) {
        fail(kName, "attention is held in float32 or bfloat16, not in " +
                        std::string(name_of(shape.attention)) + ".");
    }
}

void Weights::set_embedding(const EmbeddingSource& source) {
    auto made = std::make_unique<Embedding>(source, shape.hidden);
    if (made->projected()) packed.pack(made->projection, source.projection);
    embedding = std::move(made);
}

void Weights::add_block(const BlockSource& stored) {
    if (shape.attention == DType::bf16 && stored.out.precision == Precision::f32) {
        fail(kName, "attention in bfloat16 cannot feed a float32 output projection.");
    }
    const index_t width = shape.num_heads * shape.head_dim;
    PackedBlock b;
    b.qkv = PackedProjection(kName, "qkv", stored.qkv, 3 * width, shape.hidden);
    b.out = PackedProjection(kName, "out", stored.out, shape.hidden, width);
    b.attention_norm = Norm("attention_norm", stored.attention_norm, shape.hidden);
    b.up = PackedProjection(kName, "up", stored.up, shape.intermediate, shape.hidden);
    b.down = PackedProjection(kName, "down", stored.down, shape.hidden, shape.intermediate);
    b.output_norm = Norm("output_norm", stored.output_norm, shape.hidden);
    packed.pack(b.qkv, stored.qkv);
    packed.pack(b.out, stored.out);
    packed.pack(b.up, stored.up);
    packed.pack(b.down, stored.down);
    blocks.push_back(std::move(b));
}

void Weights::set_pooler(const ProjectionSource& source) {
    check_width(kName, "the pooler's width", source.n);
    auto made = std::make_unique<PackedProjection>(kName, "pooler", source, source.n, shape.hidden);
    if (quantised(made->precision)) {
        fail(kName, "the pooler's weights must be floating-point.");
    }
    packed.pack(*made, source);
    pooler = std::move(made);
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
