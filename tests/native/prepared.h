// Prepared models of all their parts at once.
#pragma once

#include <memory>
#include <vector>

#include "cpu/decoder.h"
#include "cpu/encoder.h"

namespace test {

using namespace fastbert;

inline ProjectionSize size_of_packed(const ProjectionSource& source) {
    return {source.n, source.k, source.precision};
}

template <typename Block>
std::vector<ProjectionSize> sizes_of(const std::vector<Block>& blocks) {
    std::vector<ProjectionSize> sizes;
    for (const Block& b : blocks) {
        for (const ProjectionSource* p : {&b.qkv, &b.out, &b.up, &b.down}) {
            sizes.push_back(size_of_packed(*p));
        }
    }
    return sizes;
}

struct EncoderParts {
    EncoderShape shape;
    std::vector<BlockSource> blocks;
    const EmbeddingSource* embedding = nullptr;
    const ProjectionSource* pooler = nullptr;

    std::unique_ptr<Encoder> encoder() const {
        std::vector<ProjectionSize> sizes = sizes_of(blocks);
        if (embedding != nullptr && embedding->projection.weight != nullptr) {
            sizes.push_back(size_of_packed(embedding->projection));
        }
        if (pooler != nullptr) sizes.push_back(size_of_packed(*pooler));
        EncoderPacker packer(shape, sizes);
        if (embedding != nullptr) packer.set_embedding(*embedding);
        for (const BlockSource& block : blocks) packer.add_block(block);
        if (pooler != nullptr) packer.set_pooler(*pooler);
        return packer.finish();
    }
};

struct DecoderParts {
    DecoderSource source;  // but for its sizes
    std::vector<DecoderBlockSource> blocks;
    const ProjectionSource* head = nullptr;

    std::unique_ptr<Decoder> decoder() const {
        DecoderSource whole = source;
        whole.sizes = sizes_of(blocks);
        if (head != nullptr) whole.sizes.push_back(size_of_packed(*head));
        DecoderPacker packer(whole);
        for (const DecoderBlockSource& block : blocks) packer.add_block(block);
        if (head != nullptr) packer.set_head(*head);
        return packer.finish();
    }
};

}  // namespace test
