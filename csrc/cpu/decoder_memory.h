// The memory of one pass through a decoder: one block, cut into the buffers its stages need.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cpu/decoder.h"
#include "cpu/decoder_indices.h"
#include "cpu/decoder_weights.h"
#include "cpu/team.h"

namespace fastbert {
namespace decoder_detail {

// Rows that go through everything between two attentions at once, by all threads together: as many
// as keep the rows of the widest operand in the second-level cache, and use each weight read for a
// while. Where products keep their sums in cache and cut K themselves, they are so fast that only
// more rows outweigh reading the weights.
inline index_t block_rows(const GemmKernels& gemm) { return gemm.kept_rows > 0 ? 512 : 112; }

struct Buffers {
    // Lays the buffers out from address `base` on; with base null, only to learn `bytes`. The sizes
    // of input and output must have been checked.
    Buffers(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
            const Indices& indices, int threads, char* base);

    index_t bytes = 0;
    index_t block_rows = 0;  // of one stage, at most

    // Where each layer's keys and values go: the caller's cache, or memory for this pass.
    CachePlaces cache;  // sizes and strides
    CacheLayer own;     // of all layers one after the other, without a cache

    // For all tokens.
    float* x = nullptr;  // the residual stream, (total, hidden)
    index_t x_stride = 0;
    char* qkv = nullptr;  // (total, width of the fused projection)
    index_t qkv_stride = 0;
    char* context = nullptr;  // (total, heads * head_dim)
    index_t context_stride = 0;
    index_t element = 0;  // bytes of an element of the two

    // For the rows of one stage.
    float* normed = nullptr;  // (rows, hidden)
    char* inner = nullptr;    // (rows, intermediate)
    OperandRoom operand;
    char* gemm_scratch = nullptr;  // of the first thread
    index_t scratch_step = 0;
    void* attention_workspace = nullptr;

    // Of a thread, whatever it works on.
    float* norm_scratch(int worker) const {
        return reinterpret_cast<float*>(norm_scratch_ + worker * norm_step_);
    }

  private:
    char* norm_scratch_ = nullptr;
    index_t norm_step_ = 0;
};

}  // namespace decoder_detail
}  // namespace fastbert
