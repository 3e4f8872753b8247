#include <pybind11/stl.h>

#include "cpu/encoder.h"
#include "python/bind.h"

namespace fastbert {
namespace {

EncoderInput input_of(address_t x, int dtype, index_t x_stride, index_t total, address_t cu_seqlens,
                      index_t batch, index_t max_seqlen, address_t key_bias) {
    EncoderInput input;
    input.x = pointer(x);
    input.dtype = DType(dtype);
    input.x_stride = x_stride;
    input.total = total;
    input.cu_seqlens = pointer<std::int32_t>(cu_seqlens);
    input.batch = batch;
    input.max_seqlen = max_seqlen;
    input.key_bias = pointer<float>(key_bias);
    return input;
}

EncoderOutput output_of(address_t out, int dtype, index_t stride, address_t indices, index_t rows) {
    EncoderOutput output;
    output.out = pointer(out);
    output.dtype = DType(dtype);
    output.stride = stride;
    output.indices = pointer<std::int64_t>(indices);
    output.rows = rows;
    return output;
}

}  // namespace

void bind_encoder(py::module_& m) {
    py::class_<ProductSource>(m, "ProductSource", "A linear map as it is stored.")
        .def(py::init([](address_t weight, int dtype, index_t n, index_t k, index_t stride,
                         address_t weight_scale, address_t bias, int bias_dtype, int precision) {
                 ProductSource source;
                 source.weight = pointer(weight);
                 source.dtype = DType(dtype);
                 source.n = n;
                 source.k = k;
                 source.stride = stride;
                 source.weight_scale = pointer<float>(weight_scale);
                 source.bias = {pointer(bias), DType(bias_dtype)};
                 source.precision = Precision(precision);
                 return source;
             }),
             py::arg("weight"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("stride"),
             py::arg("weight_scale"), py::arg("bias"), py::arg("bias_dtype"), py::arg("precision"));
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

    py::class_<Encoder>(m, "Encoder", "Blocks with packed weights; see csrc/cpu/encoder.h.")
        .def(py::init([](const std::vector<BlockSource>& blocks, index_t hidden, index_t num_heads,
                         index_t head_dim, index_t intermediate, int activation, bool pre_norm,
                         double scale, int attention_dtype) {
                 EncoderShape shape;
                 shape.hidden = hidden;
                 shape.num_heads = num_heads;
                 shape.head_dim = head_dim;
                 shape.intermediate = intermediate;
                 shape.activation = Activation(activation);
                 shape.pre_norm = pre_norm;
                 shape.scale = static_cast<float>(scale);
                 shape.attention = DType(attention_dtype);
                 const py::gil_scoped_release release;
                 return std::make_unique<Encoder>(shape, blocks);
             }),
             py::arg("blocks"), py::arg("hidden"), py::arg("num_heads"), py::arg("head_dim"),
             py::arg("intermediate"), py::arg("activation"), py::arg("pre_norm"), py::arg("scale"),
             py::arg("attention_dtype"))
        .def(
            "run",
            [](Encoder& encoder, address_t x, int dtype, index_t x_stride, index_t total,
               address_t cu_seqlens, index_t batch, index_t max_seqlen, address_t key_bias,
               address_t out, int out_dtype, index_t out_stride, address_t indices, index_t rows) {
                encoder.run(
                    input_of(x, dtype, x_stride, total, cu_seqlens, batch, max_seqlen, key_bias),
                    output_of(out, out_dtype, out_stride, indices, rows));
            },
            py::arg("x"), py::arg("dtype"), py::arg("x_stride"), py::arg("total"),
            py::arg("cu_seqlens"), py::arg("batch"), py::arg("max_seqlen"), py::arg("key_bias"),
            py::arg("out"), py::arg("out_dtype"), py::arg("out_stride"), py::arg("indices"),
            py::arg("rows"), release_gil(),
            "One forward pass. Pointers as integers, strides in elements, codes of types.h.")
        .def(
            "profile",
            [](Encoder& encoder, address_t x, int dtype, index_t x_stride, index_t total,
               address_t cu_seqlens, index_t batch, index_t max_seqlen, address_t key_bias,
               address_t out, int out_dtype, index_t out_stride, address_t indices, index_t rows) {
                EncoderProfile profile;
                {
                    const py::gil_scoped_release release;
                    encoder.run(input_of(x, dtype, x_stride, total, cu_seqlens, batch, max_seqlen,
                                         key_bias),
                                output_of(out, out_dtype, out_stride, indices, rows), &profile);
                }
                return py::make_tuple(profile.nanoseconds, profile.threads);
            },
            py::arg("x"), py::arg("dtype"), py::arg("x_stride"), py::arg("total"),
            py::arg("cu_seqlens"), py::arg("batch"), py::arg("max_seqlen"), py::arg("key_bias"),
            py::arg("out"), py::arg("out_dtype"), py::arg("out_stride"), py::arg("indices"),
            py::arg("rows"),
            "run(), timed: nanoseconds per block and step, summed over threads, and the threads.")
        .def_property_readonly("packed_bytes", &Encoder::packed_bytes)
        .def_property_readonly("arena_bytes", &Encoder::arena_bytes)
        .def_property_readonly_static("steps", [](const py::object&) { return step_names(); });
}

}  // namespace fastbert
