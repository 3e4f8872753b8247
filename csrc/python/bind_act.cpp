#include "cpu/ops/act.h"
#include "python/bind.h"

namespace fastbert {

void bind_act(py::module_& m) {
    m.def(
        "bias_act",
        [](address_t x, address_t out, address_t bias, index_t rows, index_t columns,
           index_t x_stride, index_t out_stride, int dtype, int bias_dtype, int activation) {
            ActArgs args;
            args.x = pointer(x);
            args.out = pointer(out);
            args.bias = {pointer(bias), DType(bias_dtype)};
            args.rows = rows;
            args.columns = columns;
            args.x_stride = x_stride;
            args.out_stride = out_stride;
            args.dtype = DType(dtype);
            args.activation = Activation(activation);
            bias_act(args);
        },
        py::arg("x"), py::arg("out"), py::arg("bias"), py::arg("rows"), py::arg("columns"),
        py::arg("x_stride"), py::arg("out_stride"), py::arg("dtype"), py::arg("bias_dtype"),
        py::arg("activation"), release_gil(),
        "out = activation(x + bias). Pointers as integers (0: absent), strides in elements, codes "
        "of common/types.h.");
}

}  // namespace fastbert
