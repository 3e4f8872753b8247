// The memory of one pass through an encoder: one block, cut into the buffers its stages need.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cpu/encoder.h"
#include "cpu/encoder_weights.h"
#include "cpu/ops/attention.h"
#include "cpu/team.h"

namespace fastbert {
namespace encoder_detail {

// Where everything is. For all tokens: the residual stream, the fused projection, the attention's
// output. For the rows of one stage, once per thread or once in all: the operands of its
// projections.
struct Buffers {
    // Lays the buffers out from address `base` on; with base null, only to learn `bytes`. The sizes
    // of the input must have been checked.
    Buffers(const Weights& weights, const EncoderInput& input, bool pooled, int threads,
            char* base);

    index_t bytes = 0;

    // One stage at a time is executed by all threads together, because there are few rows.
    bool shared = false;
    index_t row_blocks = 1;

    // The caller's, copied.
    std::int32_t* cu_seqlens = nullptr;     // (batch + 1)
    std::int64_t* token_indices = nullptr;  // (total), or null as in the input
    std::int64_t *word = nullptr, *position = nullptr, *type = nullptr,
                 *language = nullptr;  // (total)

    float* x = nullptr;  // (total, hidden)
    index_t x_stride = 0;
    index_t qkv_stride = 0, context_stride = 0, sums_stride = 0;
    char* pooled_rows = nullptr;  // (batch, hidden), the pooler's operand
    index_t pooled_stride = 0;
    AttentionArgs attention{};
    void* attention_workspace = nullptr;

    char* qkv_row(index_t row) const { return qkv_ + row * qkv_stride * attention_size_; }
    char* context_row(index_t row) const {
        return context_ + row * context_stride * attention_size_;
    }

    // Of the stage that `worker` executes. sums: as wide as the blocks or the embeddings.
    OperandRoom operand(int worker) const {
        return {local(worker, operand_), reinterpret_cast<float*>(local(worker, scale_)),
                reinterpret_cast<std::int32_t*>(local(worker, zero_))};
    }
    char* inner(int worker) const { return local(worker, inner_); }
    float* sums(int worker) const { return reinterpret_cast<float*>(local(worker, sums_)); }

    // Of a thread, whatever it works on.
    float* norm_scratch(int worker) const {
        return reinterpret_cast<float*>(scratch_ + worker * scratch_size_);
    }
    char* gemm_scratch() const { return scratch_ + norm_size_; }  // of the first thread
    index_t scratch_step() const { return scratch_size_; }        // to the next one's

  private:
    char* local(int worker, index_t offset) const { return local_ + worker * local_size_ + offset; }

    char *qkv_ = nullptr, *context_ = nullptr, *local_ = nullptr, *scratch_ = nullptr;
    index_t attention_size_ = 0, local_size_ = 0, scratch_size_ = 0, norm_size_ = 0;
    index_t operand_ = 0, inner_ = 0, sums_ = 0, scale_ = 0, zero_ = 0;
};

}  // namespace encoder_detail
}  // namespace fastbert
