// The weights of an encoder, packed for the instruction set in use, and checked once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "cpu/projection.h"

namespace fastbert {
namespace encoder_detail {

struct Norm {
    Float32Param weight, bias;  // (hidden)
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
    PackedMemory packed;

    Weights(const EncoderShape& shape, const std::vector<ProjectionSize>& sizes);

    // Each checks and packs what it is given. Where it throws, the weights are of no further use.
    void set_embedding(const EmbeddingSource& source);
    void add_block(const BlockSource& source);
    void set_pooler(const ProjectionSource& source);

    std::vector<const PackedProjection*> projections() const;
};

}  // namespace encoder_detail
}  // namespace fastbert
