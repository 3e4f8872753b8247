// out = LayerNorm(word + type + position + language): gather, sum (in that order) and normalise.
#pragma once

#include "common/types.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/params.h"

namespace fastbert {

// Rows of a table chosen by ids. Absent when table is null.
struct Lookup {
    const std::int64_t* ids = nullptr;  // (rows)
    const void* table = nullptr;        // (entries, hidden) of the op's dtype
    index_t entries = 0;
    index_t stride = 0;  // distance between table rows, in elements
};

struct EmbedArgs {
    Lookup word;                   // or embeds
    const void* embeds = nullptr;  // (rows, hidden) of dtype, in place of word
    index_t embeds_stride = 0;
    Lookup position;
    Lookup type;
    Lookup language;
    void* out = nullptr;  // (rows, hidden) of dtype
    index_t out_stride = 0;
    Param weight;  // (hidden)
    Param bias;    // (hidden)
    index_t rows = 0;
    index_t hidden = 0;
    DType dtype = DType::f32;
    float eps = 0;
};

struct EmbedKernels {
    // Rows [first, first + count), ids already checked. Indexed by DType: f32, bf16, f16.
    using RowsFn = void (*)(const EmbedArgs& args, const NormParams& norm, index_t first,
                            index_t count, float* scratch);
    RowsFn rows[3];
    RowsFn rows_f32[3];  // the same with float32 out
};

// Throws std::out_of_range unless every id lies in [0, entries).
void check_ids(const char* what, const std::int64_t* ids, index_t rows, index_t entries);

// Throws std::out_of_range for an id outside its table (naming id, place and size), and
// std::invalid_argument for arguments that do not fit together.
void embed_layer_norm(const EmbedArgs& args);

}  // namespace fastbert
