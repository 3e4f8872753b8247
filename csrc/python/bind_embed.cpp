#include "cpu/ops/embed.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(Lookup)
FASTBERT_RECORD(EmbedArgs)

void bind_embed(py::module_& m) {
#define FIELD(member) FASTBERT_FIELD(Lookup, #member, member, true)
    Record<Lookup>::add(m, "csrc/cpu/ops/embed.h",
                        {FIELD(ids), FIELD(table), FIELD(entries), FIELD(stride)});
#undef FIELD
#define FIELD(name, member, required) FASTBERT_FIELD(EmbedArgs, name, member, required)
    Record<EmbedArgs>::add(m, "csrc/cpu/ops/embed.h",
                           {
                               FIELD("word", word, false),
                               FIELD("embeds", embeds, false),
                               FIELD("embeds_stride", embeds_stride, false),
                               FIELD("position", position, false),
                               FIELD("type", type, false),
                               FIELD("language", language, false),
                               FIELD("out", out, true),
                               FIELD("out_stride", out_stride, true),
                               FIELD("weight", weight.data, true),
                               FIELD("weight_dtype", weight.dtype, true),
                               FIELD("bias", bias.data, true),
                               FIELD("bias_dtype", bias.dtype, true),
                               FIELD("rows", rows, true),
                               FIELD("hidden", hidden, true),
                               FIELD("dtype", dtype, true),
                               FIELD("eps", eps, true),
                           });
#undef FIELD
    m.def("embed_layer_norm", embed_layer_norm, py::arg("args"), release_gil(),
          "out = LayerNorm(word + type + position + language). IndexError for an id outside its "
          "table.");
}

}  // namespace fastbert
