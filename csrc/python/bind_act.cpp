#include "cpu/ops/act.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(ActArgs)

void bind_act(py::module_& m) {
#define FIELD(name, member, required) FASTBERT_FIELD(ActArgs, name, member, required)
    Record<ActArgs>::add(m, "csrc/cpu/ops/act.h",
                         {
                             FIELD("x", x, true),
                             FIELD("out", out, true),
                             FIELD("bias", bias.data, false),
                             FIELD("bias_dtype", bias.dtype, false),
                             FIELD("rows", rows, true),
                             FIELD("columns", columns, true),
                             FIELD("x_stride", x_stride, true),
                             FIELD("out_stride", out_stride, true),
                             FIELD("dtype", dtype, true),
                             FIELD("activation", activation, false),
                             FIELD("activation_a", activation_params.a, false),
                             FIELD("activation_b", activation_params.b, false),
                             FIELD("activation_c", activation_params.c, false),
                             FIELD("activation_d", activation_params.d, false),
                         });
#undef FIELD
    m.def("bias_act", bias_act, py::arg("args"), release_gil(), "out = activation(x + bias).");
}

}  // namespace fastbert
