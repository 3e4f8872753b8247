#include "cpu/ops/quantize.h"
#include "python/bind.h"

namespace fastbert {

void bind_quantize(py::module_& m) {
    m.def(
        "quantize_rows",
        [](address_t x, address_t q, address_t scale, address_t zero_point, index_t rows,
           index_t columns, index_t x_stride, index_t q_stride, int dtype) {
            QuantizeArgs args;
            args.x = pointer(x);
            args.dtype = DType(dtype);
            args.rows = rows;
            args.k = columns;
            args.x_stride = x_stride;
            args.q = pointer<std::uint8_t>(q);
            args.q_stride = q_stride;
            args.scale = pointer<float>(scale);
            args.zero_point = pointer<std::int32_t>(zero_point);
            quantize_rows(args);
        },
        py::arg("x"), py::arg("q"), py::arg("scale"), py::arg("zero_point"), py::arg("rows"),
        py::arg("columns"), py::arg("x_stride"), py::arg("q_stride"), py::arg("dtype"),
        release_gil(),
        "q uint8 (rows, columns), scale float32 (rows), zero_point int32 (rows) of x; pointers as "
        "integers, strides in elements.");
}

}  // namespace fastbert
