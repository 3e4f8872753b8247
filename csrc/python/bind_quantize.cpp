#include "cpu/ops/quantize.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(QuantizeArgs)
FASTBERT_RECORD(ClipArgs)

void bind_quantize(py::module_& m) {
#define FIELD(member) FASTBERT_FIELD(QuantizeArgs, #member, member, true)
    Record<QuantizeArgs>::add(m, "csrc/cpu/ops/quantize.h",
                              {FIELD(x), FIELD(dtype), FIELD(rows), FIELD(k), FIELD(x_stride),
                               FIELD(q), FIELD(q_stride), FIELD(scale), FIELD(zero_point)});
#undef FIELD
#define FIELD(member) FASTBERT_FIELD(ClipArgs, #member, member, true)
    Record<ClipArgs>::add(m, "csrc/cpu/ops/quantize.h",
                          {FIELD(x), FIELD(rows), FIELD(k), FIELD(x_stride), FIELD(largest),
                           FIELD(scale), FIELD(candidates), FIELD(error)});
#undef FIELD
    m.def("clip_errors", clip_errors, py::arg("args"), release_gil(),
          "Squared errors float32 (rows, candidates) of rounding the rows of x with each scale.");
    m.def("quantize_rows", quantize_rows, py::arg("args"), release_gil(),
          "q uint8 (rows, k), scale float32 (rows), zero_point int32 (rows) of x.");
}

}  // namespace fastbert
