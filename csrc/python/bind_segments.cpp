#include "cpu/ops/segments.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(SegmentArgs)

void bind_segments(py::module_& m) {
#define FIELD(member, required) FASTBERT_FIELD(SegmentArgs, #member, member, required)
    Record<SegmentArgs>::add(m, "csrc/cpu/ops/segments.h",
                             {FIELD(x, true), FIELD(bounds, true), FIELD(divisors, false),
                              FIELD(out, true), FIELD(rows, true), FIELD(columns, true),
                              FIELD(segments, true), FIELD(x_stride, true), FIELD(dtype, true)});
#undef FIELD
    m.def(
        "segment_sums", [](const SegmentArgs& args) { segment_sums(args); }, py::arg("args"),
        release_gil(), "out[s] = the sum of rows bounds[s] up to bounds[s + 1] / divisors[s].");
}

}  // namespace fastbert
