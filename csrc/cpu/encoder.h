// A prepared stack of transformer blocks, with the embeddings before it and the pooler behind it
// where there are such: weights packed once, then one call per forward pass.
//
// It knows shapes, not models. Each block is self-attention and a feed-forward part, normalised
// after (post-norm) or before (pre-norm) each of the two:
//   post-norm: x = norm_a(x + out(attention(qkv(x))));  x = norm_o(x + down(act(up(x))))
//   pre-norm:  x = x + out(attention(qkv(norm_a(x))));  x = x + down(act(up(norm_o(x))))
// The residual stream x is float32 in every precision. Rows are packed tokens; every row of the
// result depends on its own sequence alone and has the same bits in any batch, with any number of
// threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/types.h"
#include "cpu/arenas.h"
#include "cpu/projection.h"
#include "cpu/unfinished.h"

namespace fastbert {

enum class Isa : int;  // cpu/isa.h

// In float32 they are read in place by every pass, and must outlive the encoder.
struct NormSource {
    Param weight, bias;  // (hidden)
    float eps = 0.0f;
};

struct BlockSource {
    ProjectionSource qkv;  // queries, keys and values one after the other: n = 3 * heads * head_dim
    ProjectionSource out;
    NormSource attention_norm;
    ProjectionSource up, down;
    NormSource output_norm;
};

struct EncoderShape {
    index_t hidden = 0;
    index_t num_heads = 0, head_dim = 0;
    index_t intermediate = 0;
    Activation activation = Activation::none;
    ActivationParams activation_params;
    bool pre_norm = false;
    float scale = 0.0f;            // of the attention scores
    DType attention = DType::f32;  // f32 or bf16: what queries, keys and values are held in
};

// What the first block's rows are made of: LayerNorm(word + type + position + language), and a
// product where the tables are not as wide as the blocks.
struct EmbeddingSource {
    DType dtype = DType::f32;  // of all tables
    index_t width = 0;
    TableSource word, position, type, language;
    NormSource norm;              // (width)
    ProjectionSource projection;  // weight null: none
};

// One index for every place (b, l) of the grid: data[b * row_stride + l * column_stride]. Null: its
// table adds nothing.
struct IndexGrid {
    const std::int64_t* data = nullptr;
    index_t row_stride = 0, column_stride = 0;
};

// Tokens stand in a (batch, seqlen) grid, and travel packed: sequence b is rows cu_seqlens[b] up to
// cu_seqlens[b + 1]. What decides which memory is read (cu_seqlens, token_indices, indices of
// tables) is copied before it is checked, so that a caller's other threads may write to it
// meanwhile.
struct EncoderInput {
    // Hidden states (total, hidden), in place of the embeddings.
    const void* x = nullptr;
    DType dtype = DType::f32;
    index_t x_stride = 0;

    // Without x: what to look up.
    IndexGrid word, position, type, language;
    // (batch * seqlen, width) of the tables' dtype, in place of word; rows embeds_stride apart.
    const void* embeds = nullptr;
    index_t embeds_stride = 0;

    index_t total = 0;
    const std::int32_t* cu_seqlens = nullptr;  // (batch + 1)
    index_t batch = 0;
    index_t max_seqlen = 0;
    index_t seqlen = 0;  // width of the grid
    // (total), rising: the place b * seqlen + l of every token. Null: the grid has no other
    // token_indices, or it is of no concern (hidden states in, rows out).
    const std::int64_t* token_indices = nullptr;
    const float* key_bias = nullptr;  // (total) or null
    // Added to the scores of every block, or null: of sequence b, head h, query i and key j, both
    // counted within their sequence, bias[b * bias_batch_stride + h * bias_head_stride +
    // i * bias_query_stride + j]. Strides are 0 where it is broadcast, and may be negative.
    const float* bias = nullptr;
    index_t bias_batch_stride = 0, bias_head_stride = 0, bias_query_stride = 0;
};

struct EncoderOutput {
    void* out = nullptr;  // (rows, hidden)
    DType dtype = DType::f32;
    index_t stride = 0;
    index_t rows = 0;
    // Whether out has a row for every place of the grid, zero where no token stands, rather than
    // one for every token.
    bool grid = false;
    void* pooled = nullptr;  // (batch, n of the pooler) of dtype, or null
    index_t pooled_stride = 0;
};

// What the time of a pass is spent on.
enum class Step : int {
    load,
    qkv,
    attention,
    out,
    attention_norm,
    up,
    down,
    output_norm,
    store,
    pool
};
constexpr int kSteps = 10;
std::vector<std::string> step_names();

// Nanoseconds per block and step, summed over the threads: divide by `threads` for wall time.
struct EncoderProfile {
    std::vector<std::int64_t> nanoseconds;  // (blocks, kSteps)
    int threads = 0;
};

namespace encoder_detail {
struct Weights;
}

// As an EncoderPacker makes it.
class Encoder {
  public:
    explicit Encoder(std::unique_ptr<const encoder_detail::Weights> weights);
    ~Encoder();
    Encoder(const Encoder&) = delete;
    Encoder& operator=(const Encoder&) = delete;

    // One forward pass. Safe to call from several threads at once: each running call has its own
    // arena, which grows linearly with the number of tokens. Later calls use it again, unless it
    // is so large that it was given back.
    // threads: at most so many, 0 for max_threads().
    // Throws, before anything is computed: std::invalid_argument for arguments that do not fit, and
    // where the instruction set is no longer the one the weights were packed for;
    // std::out_of_range for an index outside its table.
    void run(const EncoderInput& input, const EncoderOutput& output, int threads = 0,
             EncoderProfile* profile = nullptr);

    Isa isa() const;               // the instruction set the weights were packed for
    index_t packed_bytes() const;  // memory of the packed weights
    index_t arena_bytes() const;   // memory of all arenas

  private:
    const std::unique_ptr<const encoder_detail::Weights> weights_;
    Arenas arenas_;
};

// Makes an encoder part by part, each packed into its final place when it is given, so that the
// weights of one part need not be in memory while another's are. A packer belongs to one thread.
//
// All functions throw std::invalid_argument where shapes, dtypes or precisions do not fit together,
// and where the instruction set has changed since the packer was made. Nothing can be made of a
// packer that threw; what it had packed goes with it.
class EncoderPacker {
  public:
    // sizes: of all projections that will be given, in any order.
    EncoderPacker(const EncoderShape& shape, const std::vector<ProjectionSize>& sizes);
    ~EncoderPacker();
    EncoderPacker(const EncoderPacker&) = delete;
    EncoderPacker& operator=(const EncoderPacker&) = delete;

    // Without it, passes are given hidden states.
    void set_embedding(const EmbeddingSource& source);
    // The next one, from the first on.
    void add_block(const BlockSource& source);
    // tanh(first W^T + bias), of the first row of every sequence.
    void set_pooler(const ProjectionSource& source);

    // Once, when all is packed.
    std::unique_ptr<Encoder> finish();

  private:
    Unfinished<encoder_detail::Weights> weights_;
};

}  // namespace fastbert
