#include "cpu/ops/peak.h"
#include "python/bind.h"

namespace fastbert {

void bind_peak(py::module_& m) {
    m.def(
        "dot_peak",
        [](int dtype, int threads, int repeats) {
            return dot_peak(DType(dtype), threads, repeats);
        },
        py::arg("dtype"), py::arg("threads"), py::arg("repeats") = 40, release_gil(),
        "Operations per second of the gemm's inner step (float32, bfloat16 or int8) on operands in "
        "registers: the most that any gemm can reach here.");
    m.def("memory_peak", memory_peak, py::arg("threads"), py::arg("repeats") = 40, release_gil(),
          "Bytes per second that threads read from memory together.");
}

}  // namespace fastbert
