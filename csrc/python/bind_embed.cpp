#include "cpu/ops/embed.h"
#include "python/bind.h"

namespace fastbert {
namespace {

// (ids, table, entries, stride)
using LookupTuple = std::tuple<address_t, address_t, index_t, index_t>;

Lookup lookup(const LookupTuple& t) {
    Lookup result;
    result.ids = pointer<const std::int64_t>(std::get<0>(t));
    result.table = pointer(std::get<1>(t));
    result.entries = std::get<2>(t);
    result.stride = std::get<3>(t);
    return result;
}

}  // namespace

void bind_embed(py::module_& m) {
    m.def(
        "embed_layer_norm",
        [](const LookupTuple& word, const LookupTuple& position, const LookupTuple& type,
           const LookupTuple& language, address_t embeds, index_t embeds_stride, address_t out,
           index_t out_stride, address_t weight, address_t bias, index_t rows, index_t hidden,
           int dtype, int weight_dtype, int bias_dtype, double eps) {
            EmbedArgs args;
            args.word = lookup(word);
            args.position = lookup(position);
            args.type = lookup(type);
            args.language = lookup(language);
            args.embeds = pointer(embeds);
            args.embeds_stride = embeds_stride;
            args.out = pointer(out);
            args.out_stride = out_stride;
            args.weight = {pointer(weight), DType(weight_dtype)};
            args.bias = {pointer(bias), DType(bias_dtype)};
            args.rows = rows;
            args.hidden = hidden;
            args.dtype = DType(dtype);
            args.eps = static_cast<float>(eps);
            embed_layer_norm(args);
        },
        py::arg("word"), py::arg("position"), py::arg("type"), py::arg("language"),
        py::arg("embeds"), py::arg("embeds_stride"), py::arg("out"), py::arg("out_stride"),
        py::arg("weight"), py::arg("bias"), py::arg("rows"), py::arg("hidden"), py::arg("dtype"),
        py::arg("weight_dtype"), py::arg("bias_dtype"), py::arg("eps"), release_gil(),
        "out = LayerNorm(word + type + position + language). A lookup is (ids, table, entries, "
        "stride "
        "in elements), (0, 0, 0, 0) when absent; embeds takes the place of word. IndexError for an "
        "id outside its table.");
}

}  // namespace fastbert
