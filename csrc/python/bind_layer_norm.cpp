#include "cpu/ops/layer_norm.h"
#include "python/bind.h"

namespace fastbert {

void bind_layer_norm(py::module_& m) {
    m.def(
        "layer_norm",
        [](address_t x, address_t residual, address_t out, address_t sum, address_t x_bias,
           address_t weight, address_t bias, index_t rows, index_t hidden, index_t x_stride,
           index_t residual_stride, index_t out_stride, index_t sum_stride, int dtype,
           int x_bias_dtype, int weight_dtype, int bias_dtype, double eps, int activation) {
            LayerNormArgs args;
            args.x = pointer(x);
            args.residual = pointer(residual);
            args.out = pointer(out);
            args.sum = pointer(sum);
            args.x_bias = {pointer(x_bias), DType(x_bias_dtype)};
            args.weight = {pointer(weight), DType(weight_dtype)};
            args.bias = {pointer(bias), DType(bias_dtype)};
            args.rows = rows;
            args.hidden = hidden;
            args.x_stride = x_stride;
            args.residual_stride = residual_stride;
            args.out_stride = out_stride;
            args.sum_stride = sum_stride;
            args.dtype = DType(dtype);
            args.eps = static_cast<float>(eps);
            args.activation = Activation(activation);
            layer_norm(args);
        },
        py::arg("x"), py::arg("residual"), py::arg("out"), py::arg("sum"), py::arg("x_bias"),
        py::arg("weight"), py::arg("bias"), py::arg("rows"), py::arg("hidden"), py::arg("x_stride"),
        py::arg("residual_stride"), py::arg("out_stride"), py::arg("sum_stride"), py::arg("dtype"),
        py::arg("x_bias_dtype"), py::arg("weight_dtype"), py::arg("bias_dtype"), py::arg("eps"),
        py::arg("activation"), release_gil(),
        "out = LayerNorm(activation(x + x_bias) + residual); sum is what was normalised. Pointers "
        "as integers (0: absent), strides in elements, codes of common/types.h.");
}

}  // namespace fastbert
