#include "cpu/ops/channel_gate.h"
#include "cpu/ops/depthwise_conv.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(DepthwiseArgs)
FASTBERT_RECORD(GateArgs)

void bind_images(py::module_& m) {
#define FIELD(name, member, required) FASTBERT_FIELD(DepthwiseArgs, name, member, required)
    Record<DepthwiseArgs>::add(
        m, "csrc/cpu/ops/depthwise_conv.h",
        {FIELD("x", x, true), FIELD("out", out, true), FIELD("means", means, true),
         FIELD("weight", weight.data, true), FIELD("weight_dtype", weight.dtype, true),
         FIELD("bias", bias.data, false), FIELD("bias_dtype", bias.dtype, false),
         FIELD("batch", batch, true), FIELD("height", height, true), FIELD("width", width, true),
         FIELD("channels", channels, true), FIELD("kernel", kernel, true),
         FIELD("stride", stride, true), FIELD("before", before, true), FIELD("after", after, true),
         FIELD("dtype", dtype, true), FIELD("activation", activation, false),
         FIELD("activation_a", activation_params.a, false),
         FIELD("activation_b", activation_params.b, false)});
#undef FIELD
    m.def("depthwise_conv", depthwise_conv, py::arg("args"), release_gil(),
          "out = activation(conv(x, weight) + bias) for each channel, and the means of out.");
#define FIELD(member) FASTBERT_FIELD(GateArgs, #member, member, true)
    Record<GateArgs>::add(m, "csrc/cpu/ops/channel_gate.h",
                          {FIELD(x), FIELD(gates), FIELD(out), FIELD(batch), FIELD(places),
                           FIELD(channels), FIELD(dtype)});
#undef FIELD
    m.def("channel_gate", channel_gate, py::arg("args"), release_gil(),
          "out = x * sigmoid(gates), one gate for each channel of an image.");
}

}  // namespace fastbert
