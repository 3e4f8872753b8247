// The weights of an encoder, packed for the instruction set in use, and checked once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/aligned_bytes.h"
#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fastbert {
namespace encoder_detail {

// y = x W^T + bias over packed weights.
struct PackedProjection {
    index_t n = 0, k = 0;
    index_t width = 0;  // of the rows it is applied to; k has the repeated columns besides
    Precision precision = Precision::f32;
    index_t packed_size = 0;               // bytes
    const std::uint8_t* packed = nullptr;  // in Weights::packed
    std::vector<float> weight_scale;       // (n), int8 only
    std::vector<float> bias_values;        // (n) or empty
    std::vector<float> factor;             // (width) or empty
    std::vector<std::int32_t> repeated;

    PackedProjection() = default;
    // `what` names the projection in error messages. The weights are still to be packed.
    PackedProjection(const char* what, const ProjectionSource& source, index_t n, index_t width);

    // From the same source, into packed_size bytes that outlive the projection.
    void pack(const ProjectionSource& source, char* into);

    const float* scale() const { return weight_scale.empty() ? nullptr : weight_scale.data(); }
    const float* bias() const { return bias_values.empty() ? nullptr : bias_values.data(); }

    InputColumns columns() const {
        return {factor.empty() ? nullptr : factor.data(), repeated.data(), k - width};
    }

    DType operand_dtype() const;  // of the rows it is applied to
    GemmKernels::RangeFn range_of(const GemmKernels& gemm) const;
    index_t panels(const GemmKernels& gemm) const;
};

struct Norm {
    std::vector<float> weight, bias;  // (hidden)
    float eps = 0.0f;

    Norm() = default;
    Norm(const char* what, const NormSource& source, index_t hidden);
};

struct Embedding {
    EmbeddingSource source;  // whose tables are read in place
    Norm norm;
    PackedProjection projection;  // n = 0: none

    Embedding(const EmbeddingSource& source, index_t hidden);
    bool projected() const { return projection.n > 0; }
};

struct PackedBlock {
    PackedProjection qkv, out;
    Norm attention_norm;
    PackedProjection up, down;
    Norm output_norm;
};

struct Weights {
    EncoderShape shape;
    std::vector<PackedBlock> blocks;
    std::unique_ptr<const Embedding> embedding;      // or null
    std::unique_ptr<const PackedProjection> pooler;  // or null
    Isa isa;
    // Of all projections, in the order of a pass: one piece of memory, so that the smallest of them
    // lies on huge pages too.
    AlignedBytes packed;

    explicit Weights(const EncoderSource& source);

    std::vector<const PackedProjection*> projections() const;
};

}  // namespace encoder_detail
}  // namespace fastbert
