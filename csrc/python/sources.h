// What prepared models are made from, as Python types: for the bindings of encoder and decoder.
#pragma once

#include "cpu/projection.h"
#include "python/input_columns.h"
#include "python/record.h"

namespace fastbert {

FASTBERT_RECORD(ProjectionSource)
FASTBERT_RECORD(ProjectionSize)
FASTBERT_RECORD(TableSource)

}  // namespace fastbert
