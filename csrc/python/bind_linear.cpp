#include "cpu/kernels.h"
#include "cpu/ops/linear.h"
#include "python/bind.h"

namespace fastbert {
namespace {

// (address, dtype); address 0: absent
using VectorTuple = std::tuple<address_t, int>;
// (address, dtype, row stride in elements); address 0: absent
using MatrixTuple = std::tuple<address_t, int, index_t>;
// (address, bytes)
using BlockTuple = std::tuple<address_t, index_t>;

GemmArgs product(const MatrixTuple& x, const BlockTuple& packed, const VectorTuple& bias,
                 int activation, const MatrixTuple& residual, const MatrixTuple& out, index_t rows,
                 index_t n, index_t k) {
    GemmArgs args;
    args.rows = rows;
    args.n = n;
    args.k = k;
    args.x = pointer(std::get<0>(x));
    args.x_dtype = DType(std::get<1>(x));
    args.x_stride = std::get<2>(x);
    args.packed = pointer<const std::uint8_t>(std::get<0>(packed));
    args.bias = pointer(std::get<0>(bias));
    args.bias_dtype = DType(std::get<1>(bias));
    args.activation = Activation(activation);
    args.residual = pointer(std::get<0>(residual));
    args.residual_dtype = DType(std::get<1>(residual));
    args.residual_stride = std::get<2>(residual);
    args.out = pointer(std::get<0>(out));
    args.out_dtype = DType(std::get<1>(out));
    args.out_stride = std::get<2>(out);
    return args;
}

}  // namespace

void bind_linear(py::module_& m) {
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
        [](const MatrixTuple& weight, index_t n, index_t k, const BlockTuple& out) {
            pack_weight(pointer(std::get<0>(weight)), DType(std::get<1>(weight)), n, k,
                        std::get<2>(weight), pointer<std::uint8_t>(std::get<0>(out)),
                        std::get<1>(out));
        },
        py::arg("weight"), py::arg("n"), py::arg("k"), py::arg("out"), release_gil(),
        "Packs weight (address, dtype, row stride) of shape (n, k) into out (address, bytes) for "
        "the instruction set in use: float32 and float16 as float32, bfloat16 and int8 as they "
        "are.");
    m.def(
        "linear",
        [](const MatrixTuple& x, const BlockTuple& packed, const VectorTuple& bias, int activation,
           const MatrixTuple& residual, const MatrixTuple& out, index_t rows, index_t n,
           index_t k) {
            linear(product(x, packed, bias, activation, residual, out, rows, n, k),
                   std::get<1>(packed));
        },
        py::arg("x"), py::arg("packed"), py::arg("bias"), py::arg("activation"),
        py::arg("residual"), py::arg("out"), py::arg("rows"), py::arg("n"), py::arg("k"),
        release_gil(),
        "out = activation(x @ W^T + bias) + residual. Matrices are (address, dtype, row stride in "
        "elements), vectors (address, dtype), packed (address, bytes); address 0 means absent.");
    m.def(
        "int8_linear",
        [](const MatrixTuple& x, const BlockTuple& packed, address_t w_scale,
           const VectorTuple& bias, int activation, const MatrixTuple& residual,
           const MatrixTuple& out, index_t rows, index_t n, index_t k, address_t x_scale,
           address_t x_zero_point, address_t factor, address_t repeated, index_t repeats) {
            GemmArgs args = product(x, packed, bias, activation, residual, out, rows, n, k);
            args.w_scale = pointer<const float>(w_scale);
            args.x_scale = pointer<const float>(x_scale);
            args.x_zero_point = pointer<const std::int32_t>(x_zero_point);
            const InputColumns columns{pointer<const float>(factor),
                                       pointer<const std::int32_t>(repeated), repeats};
            int8_linear(args, std::get<1>(packed), columns);
        },
        py::arg("x"), py::arg("packed"), py::arg("w_scale"), py::arg("bias"), py::arg("activation"),
        py::arg("residual"), py::arg("out"), py::arg("rows"), py::arg("n"), py::arg("k"),
        py::arg("x_scale") = 0, py::arg("x_zero_point") = 0, py::arg("factor") = 0,
        py::arg("repeated") = 0, py::arg("repeats") = 0, release_gil(),
        "As linear, for packed int8 weights with w_scale float32 (n). A float x is quantised row "
        "by row, times factor float32 (k), the columns in repeated int32 (repeats) once more "
        "behind the others; a uint8 x comes with its scales float32 and zero points int32 (rows).");
}

}  // namespace fastbert
