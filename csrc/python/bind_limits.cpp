#include "cpu/ops/limits.h"
#include "python/bind.h"

namespace fastbert {

void bind_limits(py::module_& m) {
    m.def(
        "dot_limit",
        [](int dtype, int threads, int repeats) {
            return dot_limit(DType(dtype), threads, repeats);
        },
        py::arg("dtype"), py::arg("threads"), py::arg("repeats") = 40, release_gil(),
        "Operations per second of the products' inner step (float32, bfloat16 or int8) on operands "
        "in registers: the most any matrix product can reach here.");
    m.def("memory_limit", memory_limit, py::arg("threads"), py::arg("repeats") = 40, release_gil(),
          "Bytes per second that threads read from memory together.");
}

}  // namespace fastbert
