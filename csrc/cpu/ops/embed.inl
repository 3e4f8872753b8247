#pragma once

#include "cpu/ops/embed.h"
#include "cpu/ops/layer_norm.inl"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

template <typename T>
inline const T* looked_up(const Lookup& lookup, index_t row) {
    if (lookup.table == nullptr) return nullptr;
    return static_cast<const T*>(lookup.table) + lookup.ids[row] * lookup.stride;
}

template <typename T, typename Out>
void embed_rows(const EmbedArgs& args, const NormParams& norm, index_t first, index_t count,
                float* scratch) {
    for (index_t row = first; row < first + count; ++row) {
        const T* word = args.embeds != nullptr
                            ? static_cast<const T*>(args.embeds) + row * args.embeds_stride
                            : looked_up<T>(args.word, row);
        const T* position = looked_up<T>(args.position, row);
        const T* type = looked_up<T>(args.type, row);
        const T* language = looked_up<T>(args.language, row);
        Out* out = static_cast<Out*>(args.out) + row * args.out_stride;
        Out* no_sum = nullptr;
        normalise_row(args.hidden, norm, scratch, out, no_sum, [&](index_t i, auto extent) {
            F32 s = load(word + i, extent);
            if (type != nullptr) s = add(s, load(type + i, extent));
            if (position != nullptr) s = add(s, load(position + i, extent));
            if (language != nullptr) s = add(s, load(language + i, extent));
            return s;
        });
    }
}

constexpr EmbedKernels embed_kernels = {
    {embed_rows<float, float>, embed_rows<bf16_t, bf16_t>, embed_rows<f16_t, f16_t>},
    {embed_rows<float, float>, embed_rows<bf16_t, float>, embed_rows<f16_t, float>}};

}  // namespace
}  // namespace fastbert
