// InputColumns as a Python type, for the bindings of the op and of the encoder.
#pragma once

#include "cpu/ops/quantize.h"
#include "python/record.h"

namespace fastbert {

FASTBERT_RECORD(InputColumns)

}  // namespace fastbert
