#include "cpu/decoder_pass.h"

#include <algorithm>

#include "cpu/decoder_attention.h"
#include "cpu/kernels.h"
#include "cpu/team.h"
#include "cpu/threads.h"

namespace fastbert {
namespace decoder_detail {
namespace {

class DecoderPass {
  public:
    DecoderPass(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
                const Indices& indices, const Buffers& buffers, int threads)
        : weights_(weights),
          shape_(weights.shape),
          input_(input),
          output_(output),
          indices_(indices),
          buffers_(buffers),
          team_{active_kernels(), buffers.gemm_scratch, buffers.scratch_step, threads, 0} {}

    void run() const {
        const ParallelRegion region;
        if (input_.total > 0) {
            input_.x != nullptr ? load() : embed();
            for (std::size_t i = 0; i < weights_.blocks.size(); ++i) block(i);
        }
        each_block(output_.rows, [&](index_t first, index_t count) { finish(first, count); });
    }

  private:
    template <class Body>
    void each_block(index_t rows, Body&& body) const {
        for (index_t first = 0; first < rows; first += buffers_.block_rows) {
            body(first, std::min(buffers_.block_rows, rows - first));
        }
    }

    void block(std::size_t index) const {
        const PackedBlock& b = weights_.blocks[index];
        const CacheLayer& layer =
            input_.cache.layers == nullptr ? buffers_.own : input_.cache.layers[index];
        each_block(input_.total, [&](index_t first, index_t count) { qkv(b, first, count); });
        const AttentionSides sides{shape_, buffers_, layer};
        norm_rope_and_store(sides, b, input_, indices_, team_);
        attend(sides, input_.causal, indices_, team_);
        each_block(input_.total, [&](index_t first, index_t count) {
            add_projection(b.out, buffers_.context + first * buffers_.context_stride * element(),
                           shape_.attention, buffers_.context_stride, first, count);
            feed_forward(b, first, count);
        });
    }

    void qkv(const PackedBlock& b, index_t first, index_t count) const {
        normalise(b.attention_norm, x(first), count);
        GemmArgs args = gemm_args(b.qkv, normed(b.qkv, count), count);
        args.out = buffers_.qkv + first * buffers_.qkv_stride * element();
        args.out_dtype = shape_.attention;
        args.out_stride = buffers_.qkv_stride;
        team_.gemm(b.qkv, args);
    }

    void feed_forward(const PackedBlock& b, index_t first, index_t count) const {
        normalise(b.feedforward_norm, x(first), count);
        GemmArgs args = gemm_args(b.up, normed(b.up, count), count);
        args.activation = shape_.activation;
        args.activation_params = b.activation_params;
        args.out = buffers_.inner;
        args.out_dtype = b.down.precision == Precision::bf16 ? DType::bf16 : DType::f32;
        args.out_stride = gemm_friendly_stride(b.up.n, args.out_dtype);
        team_.gemm(b.up, args);
        add_projection(b.down, args.out, args.out_dtype, args.out_stride, first, count);
    }

    // x += projection of the rows
    void add_projection(const PackedProjection& p, const void* rows, DType dtype, index_t stride,
                        index_t first, index_t count) const {
        const Operand operand = team_.operand(p, rows, dtype, stride, count, buffers_.operand);
        GemmArgs args = gemm_args(p, operand, count);
        args.residual = x(first);
        args.residual_stride = buffers_.x_stride;
        args.out = x(first);
        args.out_stride = buffers_.x_stride;
        team_.gemm(p, args);
    }

    // What was asked for of some tokens, behind the last norm.
    void finish(index_t first, index_t count) const {
        const std::vector<std::int64_t>& tokens = indices_.tokens;
        team_.rows(count, [&](index_t begin, index_t n, int worker) {
            for (index_t r = begin; r < begin + n; ++r) {
                const index_t at = output_.tokens == nullptr ? first + r : tokens[first + r];
                norm_rows(weights_.norm, x(at), r, 1, worker);
            }
        });
        if (output_.hidden != nullptr) store(first, count);
        if (output_.scores == nullptr) return;
        const PackedProjection& head = *weights_.head;
        GemmArgs args = gemm_args(head, normed(head, count), count);
        args.out = static_cast<char*>(output_.scores) +
                   first * output_.scores_stride * size_of(output_.dtype);
        args.out_dtype = output_.dtype;
        args.out_stride = output_.scores_stride;
        team_.gemm(head, args);
    }

    void store(index_t first, index_t count) const {
        const auto narrow = team_.table.vec_math.narrow[static_cast<int>(output_.dtype)];
        char* const out = static_cast<char*>(output_.hidden);
        const index_t stride = output_.hidden_stride * size_of(output_.dtype);
        team_.rows(count, [&](index_t begin, index_t n, int) {
            for (index_t r = begin; r < begin + n; ++r) {
                narrow(buffers_.normed + r * buffers_.x_stride, out + (first + r) * stride,
                       shape_.hidden);
            }
        });
    }

    void load() const {
        const char* const rows = static_cast<const char*>(input_.x);
        const index_t stride = input_.x_stride * size_of(input_.dtype);
        widen(input_.dtype, [=](index_t r) { return rows + r * stride; });
    }

    void embed() const {
        const TableSource& words = weights_.words;
        const char* const rows = static_cast<const char*>(words.data);
        const index_t stride = words.stride * size_of(weights_.words_dtype);
        const std::int64_t* const ids = indices_.ids.data();
        widen(weights_.words_dtype, [=](index_t r) { return rows + ids[r] * stride; });
    }

    // Fills x with the rows at row_at(r).
    template <class RowAt>
    void widen(DType dtype, RowAt&& row_at) const {
        const auto kernel = team_.table.vec_math.widen[static_cast<int>(dtype)];
        team_.rows(input_.total, [&](index_t first, index_t n, int) {
            for (index_t r = first; r < first + n; ++r) kernel(row_at(r), x(r), shape_.hidden);
        });
    }

    void normalise(const RmsNorm& norm, const float* rows, index_t count) const {
        team_.rows(count, [&](index_t first, index_t n, int worker) {
            norm_rows(norm, rows + first * buffers_.x_stride, first, n, worker);
        });
    }

    // Rows [to, to + count) of the normalised ones.
    void norm_rows(const RmsNorm& norm, const float* rows, index_t to, index_t count,
                   int worker) const {
        RmsNormArgs args;
        args.x = rows;
        args.out = buffers_.normed + to * buffers_.x_stride;
        args.rows = count;
        args.hidden = shape_.hidden;
        args.x_stride = args.out_stride = buffers_.x_stride;
        args.eps = norm.eps;
        team_.table.rms_norm.rows[0](args, norm.weight.data(), 0, count,
                                     buffers_.norm_scratch(worker));
    }

    // The normalised rows as the operand of a projection.
    Operand normed(const PackedProjection& p, index_t count) const {
        return team_.operand(p, buffers_.normed, DType::f32, buffers_.x_stride, count,
                             buffers_.operand);
    }

    float* x(index_t row) const { return buffers_.x + row * buffers_.x_stride; }
    index_t element() const { return buffers_.element; }

    const Weights& weights_;
    const DecoderShape& shape_;
    const DecoderInput& input_;
    const DecoderOutput& output_;
    const Indices& indices_;
    const Buffers& buffers_;
    const Team team_;
};

}  // namespace

void run_pass(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
              const Indices& indices, const Buffers& buffers, int threads) {
    DecoderPass(weights, input, output, indices, buffers, threads).run();
}

}  // namespace decoder_detail
}  // namespace fastbert
