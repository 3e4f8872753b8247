#include "cpu/ops/dropout.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(DropoutArgs)
FASTBERT_RECORD(SoftmaxArgs)

void bind_dropout(py::module_& m) {
#define FIELD(name, member, required) FASTBERT_FIELD(DropoutArgs, name, member, required)
    Record<DropoutArgs>::add(
        m, "csrc/cpu/ops/dropout.h",
        {FIELD("x", x, true), FIELD("residual", residual, false), FIELD("out", out, true),
         FIELD("count", count, true), FIELD("seed", dropping.seed, true),
         FIELD("threshold", dropping.threshold, true), FIELD("drop_scale", dropping.scale, true),
         FIELD("dtype", dtype, true), FIELD("out_dtype", out_dtype, true)});
#undef FIELD
#define FIELD(name, member, required) FASTBERT_FIELD(SoftmaxArgs, name, member, required)
    Record<SoftmaxArgs>::add(
        m, "csrc/cpu/ops/dropout.h",
        {FIELD("scores", scores, true), FIELD("gradients", gradients, false),
         FIELD("statistics", statistics, true), FIELD("key_bias", key_bias, false),
         FIELD("sequences", sequences, true), FIELD("heads", heads, true),
         FIELD("queries", queries, true), FIELD("keys", keys, true),
         FIELD("seed", dropping.seed, true), FIELD("threshold", dropping.threshold, true),
         FIELD("drop_scale", dropping.scale, true), FIELD("scale", scale, true),
         FIELD("causal", causal, true), FIELD("dtype", dtype, true)});
#undef FIELD
    m.def("dropout_add", dropout_add, py::arg("args"), release_gil(), "out = drop(x) + residual.");
    m.def("softmax_dropout", softmax_dropout, py::arg("args"), release_gil(),
          "scores = drop(softmax(scale * scores + key_bias)).");
    m.def("softmax_dropout_backward", softmax_dropout_backward, py::arg("args"), release_gil(),
          "The gradients of softmax_dropout, and its result once more.");
}

}  // namespace fastbert
