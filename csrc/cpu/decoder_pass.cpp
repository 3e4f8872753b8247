#include "cpu/decoder_pass.h"

#include <algorithm>
#include <cmath>

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
                const Buffers& buffers, int threads)
        : weights_(weights),
          shape_(weights.shape),
          input_(input),
          output_(output),
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
    static void each_block(index_t rows, Body&& body) {
        for (index_t first = 0; first < rows; first += kBlockRows) {
            body(first, std::min(kBlockRows, rows - first));
        }
    }

    void block(std::size_t index) const {
        const PackedBlock& b = weights_.blocks[index];
        const CacheLayer& layer =
            input_.cache.layers == nullptr ? buffers_.own : input_.cache.layers[index];
        each_block(input_.total, [&](index_t first, index_t count) { qkv(b, first, count); });
        norm_and_rotate(b, layer);
        attend(weights_, input_, buffers_, layer, team_);
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

    void norm_and_rotate(const PackedBlock& b, const CacheLayer& layer) const {
        norm_rope_and_store(weights_, b, input_, buffers_, layer, team_);
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
        if (shape_.xielu) {
            const auto code = static_cast<int>(args.out_dtype);
            std::vector<float> row(b.up.n);
            for (index_t r = 0; r < count; ++r) {
                char* const at = buffers_.inner + r * args.out_stride * size_of(args.out_dtype);
                team_.table.vec_math.widen[code](at, row.data(), b.up.n);
                for (float& v : row) {
                    v = v > 0 ? b.square * v * v + b.beta * v
                              : (std::expm1(std::min(v, b.eps)) - v) * b.exponential +
                                    b.beta * v;
                }
                team_.table.vec_math.narrow[code](row.data(), at, b.up.n);
            }
        }
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
        team_.rows(count, [&](index_t begin, index_t n, int) {
            for (index_t r = begin; r < begin + n; ++r) {
                const index_t at = buffers_.tokens == nullptr ? first + r : buffers_.tokens[first + r];
                norm_rows(weights_.norm, x(at), buffers_.normed + r * buffers_.x_stride, 1);
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
        const std::int64_t* const ids = buffers_.ids;
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
        team_.rows(count, [&](index_t first, index_t n, int) {
            norm_rows(norm, rows + first * buffers_.x_stride,
                      buffers_.normed + first * buffers_.x_stride, n);
        });
    }

    void norm_rows(const RmsNorm& norm, const float* rows, float* out, index_t count) const {
        rms_rows(norm, rows, out, buffers_.x_stride, count, shape_.hidden);
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
    const Buffers& buffers_;
    const Team team_;
};

}  // namespace

void run_pass(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
              const Buffers& buffers, int threads) {
    DecoderPass(weights, input, output, buffers, threads).run();
}

}  // namespace decoder_detail
}  // namespace fastbert
