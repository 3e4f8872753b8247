#include "cpu/ops/segments.h"
#include "python/bind.h"

namespace fastbert {

void bind_segments(py::module_& m) {
    m.def(
        "segment_sums",
        [](address_t x, address_t bounds, address_t divisors, address_t out, index_t rows,
           index_t columns, index_t segments, index_t x_stride, int dtype) {
            SegmentArgs args;
            args.x = pointer(x);
            args.bounds = pointer<const std::int64_t>(bounds);
            args.divisors = pointer<const float>(divisors);
            args.out = pointer<float>(out);
            args.rows = rows;
            args.columns = columns;
            args.segments = segments;
            args.x_stride = x_stride;
            args.dtype = DType(dtype);
            segment_sums(args);
        },
        py::arg("x"), py::arg("bounds"), py::arg("divisors"), py::arg("out"), py::arg("rows"),
        py::arg("columns"), py::arg("segments"), py::arg("x_stride"), py::arg("dtype"),
        release_gil(),
        "out[s] = the sum of rows bounds[s] up to bounds[s + 1] / divisors[s]. Pointers as "
        "integers (0: absent), the stride in elements, codes of common/types.h.");
}

}  // namespace fastbert
