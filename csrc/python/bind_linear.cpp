#include "cpu/kernels.h"
#include "cpu/ops/linear.h"
#include "python/bind.h"
#include "python/input_columns.h"

namespace fastbert {

FASTBERT_RECORD(GemmArgs)

void bind_linear(py::module_& m) {
#define FIELD(member) FASTBERT_FIELD(InputColumns, #member, member, false)
    Record<InputColumns>::add(m, "csrc/cpu/ops/quantize.h",
                              {FIELD(factor), FIELD(repeated), FIELD(repeats)});
#undef FIELD
#define FIELD(name, member, required) FASTBERT_FIELD(GemmArgs, name, member, required)
    Record<GemmArgs>::add(m, "csrc/cpu/ops/gemm.h",
                          {
                              FIELD("rows", rows, true),
                              FIELD("n", n, true),
                              FIELD("k", k, true),
                              FIELD("x", x, true),
                              FIELD("x_dtype", x_dtype, true),
                              FIELD("x_stride", x_stride, true),
                              FIELD("packed", packed, true),
                              FIELD("bias", bias, false),
                              FIELD("bias_dtype", bias_dtype, false),
                              FIELD("activation", activation, false),
                              FIELD("activation_a", activation_params.a, false),
                              FIELD("activation_b", activation_params.b, false),
                              FIELD("activation_c", activation_params.c, false),
                              FIELD("activation_d", activation_params.d, false),
                              FIELD("residual", residual, false),
                              FIELD("residual_dtype", residual_dtype, false),
                              FIELD("residual_stride", residual_stride, false),
                              FIELD("out", out, true),
                              FIELD("out_dtype", out_dtype, true),
                              FIELD("out_stride", out_stride, true),
                              FIELD("x_scale", x_scale, false),
                              FIELD("x_zero_point", x_zero_point, false),
                              FIELD("w_scale", w_scale, false),
                          });
#undef FIELD
    m.def(
        "packed_bytes",
        [](int dtype, index_t n, index_t k) {
            return packed_bytes(active_kernels().gemm, DType(dtype), n, k);
        },
        py::arg("dtype"), py::arg("n"), py::arg("k"),
        "Bytes of a packed weight of shape (n, k); dtype: what it is packed as (float32, bfloat16, "
        "int8).");
    m.def(
        "pack_weight",
        [](address_t weight, int dtype, index_t n, index_t k, index_t stride, address_t out,
           index_t out_bytes) {
            pack_weight(pointer(weight), DType(dtype), n, k, stride, pointer<std::uint8_t>(out),
                        out_bytes);
        },
        py::arg("weight"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("stride"),
        py::arg("out"), py::arg("out_bytes"), release_gil(),
        "Packs a weight of shape (n, k) for the instruction set in use: float32 and float16 as "
        "float32, bfloat16 and int8 as they are.");
    m.def("linear", linear, py::arg("args"), py::arg("packed_size"), release_gil(),
          "out = activation(x @ W^T + bias) + residual over packed float weights of packed_size "
          "bytes.");
    m.def(
        "int8_linear",
        [](const GemmArgs& args, index_t packed_size, const InputColumns* columns) {
            int8_linear(args, packed_size, columns == nullptr ? InputColumns{} : *columns);
        },
        py::arg("args"), py::arg("packed_size"), py::arg("columns"), release_gil(),
        "As linear, for packed int8 weights and their w_scale. A float x is quantised row by row, "
        "with its columns changed first where `columns` says so; a uint8 x comes with x_scale and "
        "x_zero_point.");
    m.def(
        "linear_w8a16",
        [](const GemmArgs& args, index_t packed_size, const InputColumns* columns) {
            linear_w8a16(args, packed_size, columns == nullptr ? InputColumns{} : *columns);
        },
        py::arg("args"), py::arg("packed_size"), py::arg("columns"), release_gil(),
        "As int8_linear, with rows that keep 16 bits.");
}

}  // namespace fastbert
