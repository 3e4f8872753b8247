// A prepared decoder: embeddings, all layers, last norm and the scores of the vocabulary. Weights
// are packed once; then every pass is one call, for any number of sequences of any lengths.
//
// It knows shapes, not models. A layer is
//   h = rms(x); q, k, v = qkv(h); q, k = rope(rms(q by heads)), rope(rms(k by heads))
//   x = x + out(attention(q, cached k and k, cached v and v)); x = x + down(act(up(rms(x))))
// with several heads of q to one of k and v. The residual stream x is float32 in every precision.
// Rows are packed tokens; a row of the result depends on its own sequence and on what the cache
// holds of it alone, and has the same bits in any batch, with any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/types.h"
#include "cpu/arenas.h"
#include "cpu/ops/params.h"
#include "cpu/projection.h"
#include "cpu/unfinished.h"

namespace fastbert {

enum class Isa : int;  // cpu/isa.h

struct RmsNormSource {
    Param weight;
    float eps = 0.0f;
};

struct DecoderBlockSource {
    RmsNormSource attention_norm;        // (hidden)
    ProjectionSource qkv;                // n = (num_heads + 2 * num_kv_heads) * head_dim
    RmsNormSource query_norm, key_norm;  // (head_dim)
    ProjectionSource out;
    RmsNormSource feedforward_norm;  // (hidden)
    ProjectionSource up, down;
    ActivationParams activation_params;
};

struct DecoderShape {
    index_t hidden = 0;
    index_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
    index_t intermediate = 0;
    Activation activation = Activation::none;
    float scale = 0.0f;            // of the attention scores
    DType attention = DType::f32;  // f32 or bf16: what queries, keys and values are held in
};

// All of a decoder but what is packed.
struct DecoderSource {
    DecoderShape shape;
    TableSource words;  // (entries, hidden)
    DType words_dtype = DType::f32;
    RmsNormSource norm;                 // (hidden), behind the last layer
    std::vector<ProjectionSize> sizes;  // of all projections that will be given, in any order
};

// Keys and values of one layer: rows of (num_kv_heads, head_dim), of the shape's attention dtype.
struct CacheLayer {
    void* keys = nullptr;
    void* values = nullptr;
};

// Where the keys and values of all layers are. Sequence b stands in rows places[b] and after, of
// which the first held[b] hold earlier tokens; its new tokens are written behind them.
struct CachePlaces {
    const CacheLayer* layers = nullptr;  // one a block; null: nothing is kept of this pass
    index_t rows = 0;                    // of the memory of each layer
    index_t row_stride = 0, head_stride = 0;
    const std::int64_t* places = nullptr;  // (batch)
    const std::int64_t* held = nullptr;    // (batch)
};

// Sequence b is rows cu_seqlens[b] up to cu_seqlens[b + 1]. What decides which memory is read or
// written is copied before it is checked, so that a caller's other threads may write to it
// meanwhile.
struct DecoderInput {
    const std::int64_t* ids = nullptr;  // (total), or
    const void* x = nullptr;            // (total, hidden) in place of the embeddings
    DType dtype = DType::f32;
    index_t x_stride = 0;

    index_t total = 0;
    const std::int32_t* cu_seqlens = nullptr;  // (batch + 1)
    index_t batch = 0;
    const float* cos = nullptr;  // (total, head_dim / 2), of every token's angles
    const float* sin = nullptr;  // likewise
    bool causal = true;
    CachePlaces cache;
};

struct DecoderOutput {
    // Which tokens are wanted; null: all of them.
    const std::int64_t* tokens = nullptr;  // (rows)
    index_t rows = 0;
    DType dtype = DType::f32;
    void* hidden = nullptr;  // (rows, hidden) behind the last norm, or null
    index_t hidden_stride = 0;
    void* scores = nullptr;  // (rows, n of the head), or null
    index_t scores_stride = 0;
};

namespace decoder_detail {
struct Weights;
}

// As a DecoderPacker makes it.
class Decoder {
  public:
    explicit Decoder(std::unique_ptr<const decoder_detail::Weights> weights);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // One pass. Safe to call from several threads at once, as long as they write to different
    // caches. threads: at most so many, 0 for max_threads().
    // Throws, before anything is computed or written: std::invalid_argument for arguments that do
    // not fit, and where the instruction set is no longer the one the weights were packed for;
    // std::out_of_range for an id outside of the table.
    void run(const DecoderInput& input, const DecoderOutput& output, int threads = 0);

    Isa isa() const;               // the instruction set the weights were packed for
    index_t packed_bytes() const;  // memory of the packed weights
    index_t arena_bytes() const;   // memory of all arenas

  private:
    const std::unique_ptr<const decoder_detail::Weights> weights_;
    Arenas arenas_;
};

// Makes a decoder part by part; as an EncoderPacker (encoder.h).
class DecoderPacker {
  public:
    explicit DecoderPacker(const DecoderSource& source);
    ~DecoderPacker();
    DecoderPacker(const DecoderPacker&) = delete;
    DecoderPacker& operator=(const DecoderPacker&) = delete;

    // The next one, from the first on.
    void add_block(const DecoderBlockSource& source);
    // To the vocabulary. Without it, passes give hidden states.
    void set_head(const ProjectionSource& source);

    // Once, when all is packed.
    std::unique_ptr<Decoder> finish();

  private:
    Unfinished<decoder_detail::Weights> weights_;
};

}  // namespace fastbert
