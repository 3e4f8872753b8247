#include "cpu/decoder_weights.h"

#include <string>
#include <utility>

#include "common/check.h"

namespace fastbert {
namespace decoder_detail {
namespace {

constexpr const char* kName = "decoder";

void check_shape(const DecoderShape& shape) {
    check_width(kName, "hidden", shape.hidden);
    check_width(kName, "num_heads", shape.num_heads);
    check_width(kName, "num_kv_heads", shape.num_kv_heads);
    check_width(kName, "head_dim", shape.head_dim);
    check_width(kName, "intermediate", shape.intermediate);
    if (shape.num_heads % shape.num_kv_heads != 0) {
        fail(kName, std::to_string(shape.num_heads) + " heads cannot share the keys of " +
                        std::to_string(shape.num_kv_heads) + " evenly.");
    }
    if (shape.head_dim % 2 != 0) fail(kName, "head_dim must be even, since pairs are rotated.");
    check_activation(kName, shape.activation);
    if (shape.attention != DType::f32 && shape.attention != DType::bf16) {
        fail(kName, "attention is held in float32 or bfloat16, not in " +
                        std::string(name_of(shape.attention)) + ".");
    }
}

PackedBlock block_of(const DecoderShape& shape, const DecoderBlockSource& stored) {
    if (shape.attention == DType::bf16 && stored.out.precision == Precision::f32) {
        fail(kName, "attention in bfloat16 cannot feed a float32 output projection.");
    }
    const index_t width = shape.num_heads * shape.head_dim;
    const index_t fused = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    PackedBlock b;
    b.attention_norm = RmsNorm("attention_norm", stored.attention_norm, shape.hidden);
    b.qkv = PackedProjection(kName, "qkv", stored.qkv, fused, shape.hidden);
    b.query_norm = RmsNorm("query_norm", stored.query_norm, shape.head_dim);
    b.key_norm = RmsNorm("key_norm", stored.key_norm, shape.head_dim);
    b.out = PackedProjection(kName, "out", stored.out, shape.hidden, width);
    b.feedforward_norm = RmsNorm("feedforward_norm", stored.feedforward_norm, shape.hidden);
    b.up = PackedProjection(kName, "up", stored.up, shape.intermediate, shape.hidden);
    b.down = PackedProjection(kName, "down", stored.down, shape.hidden, shape.intermediate);
    b.activation_params = stored.activation_params;
    return b;
}

}  // namespace

RmsNorm::RmsNorm(const char* what, const RmsNormSource& source, index_t width) : eps(source.eps) {
    check_eps(kName, eps);
    if (source.weight.data == nullptr) fail(kName, std::string(what) + " has no weight.");
    weight = widened(kName, what, source.weight, width);
}

Weights::Weights(const DecoderSource& source)
    : shape(source.shape),
      words(source.words),
      words_dtype(source.words_dtype),
      isa(active()),
      packed(kName, source.sizes) {
    check_shape(shape);
    check_float_dtype(kName, "the table of words", words_dtype);
    check_size(kName, "entries of the table of words", words.entries);
    check_matrix(kName, "table of words", words.data, words.entries, shape.hidden, words.stride);
    norm = RmsNorm("norm", source.norm, shape.hidden);
}

void Weights::add_block(const DecoderBlockSource& stored) {
    PackedBlock b = block_of(shape, stored);
    packed.pack(b.qkv, stored.qkv);
    packed.pack(b.out, stored.out);
    packed.pack(b.up, stored.up);
    packed.pack(b.down, stored.down);
    blocks.push_back(std::move(b));
}

void Weights::set_head(const ProjectionSource& source) {
    check_width(kName, "the width of the head", source.n);
    auto made = std::make_unique<PackedProjection>(kName, "head", source, source.n, shape.hidden);
    packed.pack(*made, source);
    head = std::move(made);
}

std::vector<const PackedProjection*> Weights::projections() const {
    std::vector<const PackedProjection*> all;
    for (const PackedBlock& b : blocks) all.insert(all.end(), {&b.qkv, &b.out, &b.up, &b.down});
    if (head != nullptr) all.push_back(head.get());
    return all;
}

}  // namespace decoder_detail
}  // namespace fastbert
