#include "python/bind.h"
#include "python/sources.h"

namespace fastbert {

void bind_sources(py::module_& m) {
    const char* const where = "csrc/cpu/projection.h";
#define FIELD(name, member, required) FASTBERT_FIELD(ProjectionSource, name, member, required)
    Record<ProjectionSource>::add(m, where,
                                  {
                                      FIELD("weight", weight, true),
                                      FIELD("dtype", dtype, true),
                                      FIELD("n", n, true),
                                      FIELD("k", k, true),
                                      FIELD("stride", stride, true),
                                      FIELD("weight_scale", weight_scale, false),
                                      FIELD("bias", bias[0].data, false),
                                      FIELD("bias_dtype", bias[0].dtype, false),
                                      FIELD("second_bias", bias[1].data, false),
                                      FIELD("third_bias", bias[2].data, false),
                                      FIELD("precision", precision, true),
                                      FIELD("columns", columns, false),
                                  });
#undef FIELD
#define FIELD(member) FASTBERT_FIELD(ProjectionSize, #member, member, true)
    Record<ProjectionSize>::add(m, where, {FIELD(n), FIELD(k), FIELD(precision)});
#undef FIELD
#define FIELD(member) FASTBERT_FIELD(TableSource, #member, member, true)
    Record<TableSource>::add(m, where, {FIELD(data), FIELD(entries), FIELD(stride)});
#undef FIELD
}

}  // namespace fastbert
