#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "python/bind.h"
#include "python/watch.h"

namespace fastbert {
namespace {

// (data, row stride, column stride); data 0: absent
using GridTuple = std::tuple<address_t, index_t, index_t>;
// (data, entries, row stride); data 0: absent
using TableTuple = std::tuple<address_t, index_t, index_t>;

IndexGrid grid_of(const GridTuple& t) {
    return {pointer<std::int64_t>(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
}

TableSource table_of(const TableTuple& t) {
    return {pointer(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
}

py::object run(Encoder& encoder, const Watch* watch, int threads, address_t x, int dtype,
               index_t x_stride, const GridTuple& word, const GridTuple& position,
               const GridTuple& type, const GridTuple& language, address_t embeds,
               index_t embeds_stride, index_t total, address_t cu_seqlens, index_t batch,
               index_t max_seqlen, index_t seqlen, address_t places, address_t key_bias,
               address_t out, int out_dtype, index_t out_stride, index_t rows, bool grid,
               address_t pooled, index_t pooled_stride, bool profile) {
    if ((watch != nullptr && !watch->unchanged(true)) || encoder.isa() != active()) {
        return py::none();
    }
    EncoderInput input;
    input.x = pointer(x);
    input.dtype = DType(dtype);
    input.x_stride = x_stride;
    input.word = grid_of(word);
    input.position = grid_of(position);
    input.type = grid_of(type);
    input.language = grid_of(language);
    input.embeds = pointer(embeds);
    input.embeds_stride = embeds_stride;
    input.total = total;
    input.cu_seqlens = pointer<std::int32_t>(cu_seqlens);
    input.batch = batch;
    input.max_seqlen = max_seqlen;
    input.seqlen = seqlen;
    input.places = pointer<std::int64_t>(places);
    input.key_bias = pointer<float>(key_bias);
    EncoderOutput output;
    output.out = pointer(out);
    output.dtype = DType(out_dtype);
    output.stride = out_stride;
    output.rows = rows;
    output.grid = grid;
    output.pooled = pointer(pooled);
    output.pooled_stride = pooled_stride;
    EncoderProfile spent;
    {
        const py::gil_scoped_release release;
        encoder.run(input, output, threads, profile ? &spent : nullptr);
    }
    if (!profile) return py::bool_(true);
    return py::make_tuple(spent.nanoseconds, spent.threads);
}

}  // namespace

void bind_encoder(py::module_& m) {
    py::class_<ProductSource>(m, "ProductSource", "A linear map as it is stored.")
        .def(py::init([](address_t weight, int dtype, index_t n, index_t k, index_t stride,
                         address_t weight_scale, address_t bias, int bias_dtype, int precision,
                         address_t factor, address_t repeated, index_t repeats) {
                 ProductSource source;
                 source.weight = pointer(weight);
                 source.dtype = DType(dtype);
                 source.n = n;
                 source.k = k;
                 source.stride = stride;
                 source.weight_scale = pointer<float>(weight_scale);
                 source.bias = {pointer(bias), DType(bias_dtype)};
                 source.precision = Precision(precision);
                 source.columns = {pointer<const float>(factor),
                                   pointer<const std::int32_t>(repeated), repeats};
                 return source;
             }),
             py::arg("weight"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("stride"),
             py::arg("weight_scale"), py::arg("bias"), py::arg("bias_dtype"), py::arg("precision"),
             py::arg("factor") = 0, py::arg("repeated") = 0, py::arg("repeats") = 0);
    py::class_<NormSource>(m, "NormSource", "A LayerNorm as it is stored.")
        .def(py::init([](address_t weight, int weight_dtype, address_t bias, int bias_dtype,
                         double eps) {
                 return NormSource{{pointer(weight), DType(weight_dtype)},
                                   {pointer(bias), DType(bias_dtype)},
                                   static_cast<float>(eps)};
             }),
             py::arg("weight"), py::arg("weight_dtype"), py::arg("bias"), py::arg("bias_dtype"),
             py::arg("eps"));
    py::class_<BlockSource>(m, "BlockSource", "A transformer block as it is stored.")
        .def(py::init<ProductSource, ProductSource, NormSource, ProductSource, ProductSource,
                      NormSource>(),
             py::arg("qkv"), py::arg("out"), py::arg("attention_norm"), py::arg("up"),
             py::arg("down"), py::arg("output_norm"));

    py::class_<EmbeddingSource>(m, "EmbeddingSource", "Embeddings as they are stored.")
        .def(py::init([](int dtype, index_t width, const TableTuple& word,
                         const TableTuple& position, const TableTuple& type,
                         const TableTuple& language, const NormSource& norm,
                         const std::optional<ProductSource>& projection) {
                 return EmbeddingSource{DType(dtype),   width,
                                        table_of(word), table_of(position),
                                        table_of(type), table_of(language),
                                        norm,           projection.value_or(ProductSource{})};
             }),
             py::arg("dtype"), py::arg("width"), py::arg("word"), py::arg("position"),
             py::arg("type"), py::arg("language"), py::arg("norm"), py::arg("projection"));

    py::class_<Encoder>(m, "Encoder", "Blocks with packed weights; see csrc/cpu/encoder.h.")
        .def(py::init([](const std::vector<BlockSource>& blocks, index_t hidden, index_t num_heads,
                         index_t head_dim, index_t intermediate, int activation, bool pre_norm,
                         double scale, int attention_dtype, const EmbeddingSource* embedding,
                         const ProductSource* pooler) {
                 EncoderSource source;
                 source.blocks = blocks;
                 source.shape.hidden = hidden;
                 source.shape.num_heads = num_heads;
                 source.shape.head_dim = head_dim;
                 source.shape.intermediate = intermediate;
                 source.shape.activation = Activation(activation);
                 source.shape.pre_norm = pre_norm;
                 source.shape.scale = static_cast<float>(scale);
                 source.shape.attention = DType(attention_dtype);
                 source.embedding = embedding;
                 source.pooler = pooler;
                 const py::gil_scoped_release release;
                 return std::make_unique<Encoder>(source);
             }),
             py::arg("blocks"), py::arg("hidden"), py::arg("num_heads"), py::arg("head_dim"),
             py::arg("intermediate"), py::arg("activation"), py::arg("pre_norm"), py::arg("scale"),
             py::arg("attention_dtype"), py::arg("embedding"), py::arg("pooler"))
        .def("run", &run, py::arg("watch"), py::arg("threads"), py::arg("x"), py::arg("dtype"),
             py::arg("x_stride"), py::arg("word"), py::arg("position"), py::arg("type"),
             py::arg("language"), py::arg("embeds"), py::arg("embeds_stride"), py::arg("total"),
             py::arg("cu_seqlens"), py::arg("batch"), py::arg("max_seqlen"), py::arg("seqlen"),
             py::arg("places"), py::arg("key_bias"), py::arg("out"), py::arg("out_dtype"),
             py::arg("out_stride"), py::arg("rows"), py::arg("grid"), py::arg("pooled"),
             py::arg("pooled_stride"), py::arg("profile"),
             "One forward pass. Pointers as integers, strides in elements, codes of types.h. A "
             "grid of indices is (data, row stride, column stride), (0, 0, 0) when absent. None, "
             "and nothing computed, when the watch saw a change or the instruction set is another "
             "one by now; else True, or with profile=True the nanoseconds per block and step, "
             "summed over threads, and the threads.")
        .def_property_readonly("packed_bytes", &Encoder::packed_bytes)
        .def_property_readonly("arena_bytes", &Encoder::arena_bytes)
        .def_property_readonly_static("steps", [](const py::object&) { return step_names(); });
}

}  // namespace fastbert
