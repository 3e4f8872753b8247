#include "cpu/ops/layer_norm.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(LayerNormArgs)

void bind_layer_norm(py::module_& m) {
#define FIELD(name, member, required) FASTBERT_FIELD(LayerNormArgs, name, member, required)
    Record<LayerNormArgs>::add(m, "csrc/cpu/ops/layer_norm.h",
                               {
                                   FIELD("x", x, true),
                                   FIELD("residual", residual, false),
                                   FIELD("out", out, true),
                                   FIELD("sum", sum, false),
                                   FIELD("x_bias", x_bias.data, false),
                                   FIELD("x_bias_dtype", x_bias.dtype, false),
                                   FIELD("weight", weight.data, true),
                                   FIELD("weight_dtype", weight.dtype, true),
                                   FIELD("bias", bias.data, true),
                                   FIELD("bias_dtype", bias.dtype, true),
                                   FIELD("rows", rows, true),
                                   FIELD("hidden", hidden, true),
                                   FIELD("x_stride", x_stride, true),
                                   FIELD("residual_stride", residual_stride, false),
                                   FIELD("out_stride", out_stride, true),
                                   FIELD("sum_stride", sum_stride, false),
                                   FIELD("dtype", dtype, true),
                                   FIELD("activation", activation, false),
                                   FIELD("activation_a", activation_params.a, false),
                                   FIELD("activation_b", activation_params.b, false),
                                   FIELD("activation_c", activation_params.c, false),
                                   FIELD("activation_d", activation_params.d, false),
                                   FIELD("eps", eps, true),
                               });
#undef FIELD
    m.def("layer_norm", layer_norm, py::arg("args"), release_gil(),
          "out = LayerNorm(activation(x + x_bias) + residual); sum is what was normalised.");
}

}  // namespace fastbert
