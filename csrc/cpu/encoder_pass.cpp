#include "cpu/encoder_pass.h"

#include <algorithm>
#include <chrono>

#include "cpu/kernels.h"
#include "cpu/team.h"
#include "cpu/threads.h"

namespace fastbert {
namespace encoder_detail {
namespace {

using Clock = std::chrono::steady_clock;

// Adds the time of a scope to a counter; does nothing without one.
class Stopwatch {
  public:
    Stopwatch(std::int64_t* counter, index_t threads) : counter_(counter), threads_(threads) {
        if (counter_ != nullptr) start_ = Clock::now();
    }
    ~Stopwatch() {
        if (counter_ == nullptr) return;
        const auto spent =
            std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_);
        *counter_ += spent.count() * threads_;
    }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

  private:
    std::int64_t* counter_;
    index_t threads_;
    Clock::time_point start_;
};

// A team whose work is timed.
struct Executor : Team {
    std::int64_t* counters;  // (blocks, kSteps) or null

    Executor(const KernelTable& kernels, const Buffers& buffers, std::int64_t* counted, int size,
             int number)
        : Team{kernels, buffers.gemm_scratch(), buffers.scratch_step(), size, number},
          counters(counted) {}

    Stopwatch time(index_t block, Step step) const {
        std::int64_t* counter =
            counters == nullptr ? nullptr : counters + block * kSteps + static_cast<int>(step);
        return Stopwatch(counter, threads);
    }
};

// A pass through the encoder: everything that does not change from stage to stage.
class EncoderPass {
  public:
    EncoderPass(const Weights& weights, const EncoderInput& input, const EncoderOutput& output,
                const Buffers& buffers)
        : weights_(weights),
          shape_(weights.shape),
          blocks_(weights.blocks),
          input_(input),
          output_(output),
          buffers_(buffers),
          table_(active_kernels()) {}

    void run(int threads, EncoderProfile* profile) {
        if (input_.total == 0) return clear_rows(0, output_.rows);
        const ParallelRegion region;
        const index_t blocks = static_cast<index_t>(blocks_.size());
        std::vector<std::int64_t> counters;
        if (profile != nullptr) counters.resize(threads * blocks * kSteps);
        const auto counters_of = [&](int worker) {
            return counters.empty() ? nullptr : counters.data() + worker * blocks * kSteps;
        };
        for (index_t block = -1; block < blocks; ++block) {
            if (block >= 0) {
                const Executor all{table_, buffers_, counters_of(0), threads, 0};
                attention(all, block);
            }
            if (buffers_.shared) {
                stage({table_, buffers_, counters_of(0), threads, 0}, block, 0, input_.total);
                continue;
            }
            const index_t parts = buffers_.row_blocks;
            parallel_for(parts, threads, [&](index_t part, int worker) {
                const index_t first = input_.total * part / parts;
                stage({table_, buffers_, counters_of(worker), 1, worker}, block, first,
                      input_.total * (part + 1) / parts - first);
            });
        }
        if (output_.pooled != nullptr) {
            pool({table_, buffers_, counters_of(0), threads, 0}, blocks - 1);
        }
        if (profile == nullptr) return;
        profile->threads = threads;
        profile->nanoseconds.assign(blocks * kSteps, 0);
        for (std::size_t i = 0; i < counters.size(); ++i) {
            profile->nanoseconds[i % profile->nanoseconds.size()] += counters[i];
        }
    }

  private:
    void attention(const Executor& all, index_t block) const {
        const Stopwatch watch = all.time(block, Step::attention);
        attention_varlen(buffers_.attention, buffers_.attention_workspace, all.threads);
    }

    // Everything between the attention of `block` and that of the next one, for some rows. Block -1
    // stands for the input; after the last block comes the output.
    void stage(const Executor& e, index_t block, index_t first, index_t count) const {
        float* const x = buffers_.x + first * buffers_.x_stride;
        if (block < 0) {
            input_.x != nullptr ? load(e, first, count, x) : embed(e, first, count, x);
        } else {
            finish_block(e, block, first, count, x);
        }
        const index_t next = block + 1;
        if (next == static_cast<index_t>(blocks_.size())) {
            store(e, block, first, count, x);
            return;
        }
        const PackedBlock& b = blocks_[next];
        const float* rows = x;
        index_t stride = buffers_.x_stride;
        if (shape_.pre_norm) {
            normalise(e, next, Step::attention_norm, b.attention_norm, x, buffers_.x_stride,
                      buffers_.sums(e.worker), buffers_.sums_stride, count);
            rows = buffers_.sums(e.worker);
            stride = buffers_.sums_stride;
        }
        const Stopwatch watch = e.time(next, Step::qkv);
        const Operand operand = float_operand(e, rows, stride, count, b.qkv);
        GemmArgs args = gemm_args(b.qkv, operand, count);
        args.out = buffers_.qkv_row(first);
        args.out_dtype = shape_.attention;
        args.out_stride = buffers_.qkv_stride;
        e.gemm(b.qkv, args);
    }

    void finish_block(const Executor& e, index_t block, index_t first, index_t count,
                      float* x) const {
        const PackedBlock& b = blocks_[block];
        float* const sums = buffers_.sums(e.worker);
        {
            const Stopwatch watch = e.time(block, Step::out);
            const Operand operand =
                e.operand(b.out, buffers_.context_row(first), shape_.attention,
                          buffers_.context_stride, count, buffers_.operand(e.worker));
            add_projection(e, b.out, operand, x, count);
        }
        const float* rows = x;
        index_t stride = buffers_.x_stride;
        if (shape_.pre_norm) {
            normalise(e, block, Step::output_norm, b.output_norm, x, buffers_.x_stride, sums,
                      buffers_.sums_stride, count);
            rows = sums;
            stride = buffers_.sums_stride;
        } else {
            normalise(e, block, Step::attention_norm, b.attention_norm, x, buffers_.x_stride, x,
                      buffers_.x_stride, count);
        }
        Operand inner;
        {
            const Stopwatch watch = e.time(block, Step::up);
            const Operand operand = float_operand(e, rows, stride, count, b.up);
            GemmArgs args = gemm_args(b.up, operand, count);
            args.activation = shape_.activation;
            args.activation_params = shape_.activation_params;
            inner = up_projection(e, b, args);
        }
        {
            const Stopwatch watch = e.time(block, Step::down);
            add_projection(e, b.down, inner, x, count);
        }
        if (!shape_.pre_norm) {
            normalise(e, block, Step::output_norm, b.output_norm, x, buffers_.x_stride, x,
                      buffers_.x_stride, count);
        }
    }

    // x += projection of the operand
    void add_projection(const Executor& e, const PackedProjection& p, const Operand& operand,
                        float* x, index_t count) const {
        GemmArgs args = gemm_args(p, operand, count);
        args.residual = x;
        args.residual_stride = buffers_.x_stride;
        args.out = x;
        args.out_stride = buffers_.x_stride;
        e.gemm(p, args);
    }

    // The projection up to the intermediate width, as the operand of the one that comes
    // down.
    Operand up_projection(const Executor& e, const PackedBlock& b, GemmArgs& args) const {
        const index_t count = args.rows;
        args.out = buffers_.inner(e.worker);
        args.out_dtype = b.down.precision == Precision::bf16 ? DType::bf16 : DType::f32;
        args.out_stride = gemm_friendly_stride(b.up.n, args.out_dtype);
        e.gemm(b.up, args);
        return e.operand(b.down, args.out, args.out_dtype, args.out_stride, count,
                         buffers_.operand(e.worker));
    }

    // float32 rows as the operand of a projection.
    Operand float_operand(const Executor& e, const void* rows, index_t stride, index_t count,
                          const PackedProjection& p) const {
        return e.operand(p, rows, DType::f32, stride, count, buffers_.operand(e.worker));
    }

    void normalise(const Executor& e, index_t block, Step step, const Norm& norm, const float* x,
                   index_t x_stride, float* out, index_t out_stride, index_t count) const {
        const Stopwatch watch = e.time(block, step);
        LayerNormArgs args;
        args.x = x;
        args.x_stride = x_stride;
        args.out = out;
        args.out_stride = out_stride;
        args.rows = count;
        args.hidden = shape_.hidden;
        args.eps = norm.eps;
        const NormParams params{norm.weight.get(), norm.bias.get(), norm.eps};
        e.rows(count, [&](index_t first, index_t n, int worker) {
            table_.layer_norm.rows[0](args, nullptr, params, first, n,
                                      buffers_.norm_scratch(worker));
        });
    }

    void load(const Executor& e, index_t first, index_t count, float* x) const {
        const Stopwatch watch = e.time(0, Step::load);
        const auto widen = table_.vec_math.widen[static_cast<int>(input_.dtype)];
        const char* const rows = static_cast<const char*>(input_.x);
        const index_t stride = input_.x_stride * size_of(input_.dtype);
        e.rows(count, [&](index_t begin, index_t n, int) {
            for (index_t r = begin; r < begin + n; ++r) {
                widen(rows + (first + r) * stride, x + r * buffers_.x_stride, shape_.hidden);
            }
        });
    }

    void embed(const Executor& e, index_t first, index_t count, float* x) const {
        const Stopwatch watch = e.time(0, Step::load);
        const Embedding& tables = *weights_.embedding;
        const auto lookup = [first](const std::int64_t* ids, const TableSource& table) {
            return ids == nullptr ? Lookup{}
                                  : Lookup{ids + first, table.data, table.entries, table.stride};
        };
        const EmbeddingSource& source = tables.source;
        EmbedArgs args;
        args.word = lookup(buffers_.word, source.word);
        if (input_.embeds != nullptr) {
            args.word = {buffers_.word + first, input_.embeds, input_.batch * input_.seqlen,
                         input_.embeds_stride};
        }
        args.position = lookup(buffers_.position, source.position);
        args.type = lookup(buffers_.type, source.type);
        args.language = lookup(buffers_.language, source.language);
        args.rows = count;
        args.hidden = source.width;
        args.dtype = source.dtype;
        args.eps = tables.norm.eps;
        args.out = tables.projected() ? buffers_.sums(e.worker) : x;
        args.out_stride = tables.projected() ? buffers_.sums_stride : buffers_.x_stride;
        const NormParams norm{tables.norm.weight.get(), tables.norm.bias.get(), tables.norm.eps};
        const auto kernel = table_.embed.rows_f32[static_cast<int>(source.dtype)];
        e.rows(count, [&](index_t begin, index_t n, int worker) {
            kernel(args, norm, begin, n, buffers_.norm_scratch(worker));
        });
        if (!tables.projected()) return;
        const Operand operand =
            float_operand(e, args.out, args.out_stride, count, tables.projection);
        GemmArgs gemm = gemm_args(tables.projection, operand, count);
        gemm.out = x;
        gemm.out_stride = buffers_.x_stride;
        e.gemm(tables.projection, gemm);
    }

    // Of the rows after the last block.
    void pool(const Executor& all, index_t block) const {
        const Stopwatch watch = all.time(block, Step::pool);
        const PackedProjection& pooler = *weights_.pooler;
        const DType dtype = pooler.operand_dtype();
        const auto narrow = table_.vec_math.narrow[static_cast<int>(dtype)];
        for (index_t b = 0; b < input_.batch; ++b) {
            narrow(buffers_.x + buffers_.cu_seqlens[b] * buffers_.x_stride,
                   buffers_.pooled_rows + b * buffers_.pooled_stride * size_of(dtype),
                   shape_.hidden);
        }
        GemmArgs args =
            gemm_args(pooler, {buffers_.pooled_rows, dtype, buffers_.pooled_stride}, input_.batch);
        args.activation = Activation::tanh;
        args.out = output_.pooled;
        args.out_dtype = output_.dtype;
        args.out_stride = output_.pooled_stride;
        all.gemm(pooler, args);
    }

    void store(const Executor& e, index_t block, index_t first, index_t count,
               const float* x) const {
        const Stopwatch watch = e.time(block, Step::store);
        const auto narrow = table_.vec_math.narrow[static_cast<int>(output_.dtype)];
        char* const rows = static_cast<char*>(output_.out);
        const index_t stride = output_.stride * size_of(output_.dtype);
        const std::int64_t* const token_indices = output_.grid ? buffers_.token_indices : nullptr;
        e.rows(count, [&](index_t begin, index_t n, int) {
            for (index_t r = begin; r < begin + n; ++r) {
                const index_t at = token_indices == nullptr ? first + r : token_indices[first + r];
                narrow(x + r * buffers_.x_stride, rows + at * stride, shape_.hidden);
                if (token_indices == nullptr) continue;
                // The rows up to the next token are padding.
                const index_t token = first + r + 1;
                const index_t end = token < input_.total ? token_indices[token] : output_.rows;
                clear_rows(at + 1, end);
                if (first + r == 0) clear_rows(0, at);
            }
        });
    }

    void clear_rows(index_t begin, index_t end) const {
        const index_t size = size_of(output_.dtype);
        for (index_t r = begin; r < end; ++r) {
            char* const row = static_cast<char*>(output_.out) + r * output_.stride * size;
            std::fill_n(row, shape_.hidden * size, char{0});
        }
    }

    const Weights& weights_;
    const EncoderShape& shape_;
    const std::vector<PackedBlock>& blocks_;
    const EncoderInput& input_;
    const EncoderOutput& output_;
    const Buffers& buffers_;
    const KernelTable& table_;
};

}  // namespace

void run_pass(const Weights& weights, const EncoderInput& input, const EncoderOutput& output,
              const Buffers& buffers, int threads, EncoderProfile* profile) {
    EncoderPass(weights, input, output, buffers).run(threads, profile);
}

}  // namespace encoder_detail
}  // namespace fastbert
