// One pass over buffers that are laid out and filled, on arguments that were checked.
#pragma once

#include "cpu/decoder_memory.h"

namespace fastbert {
namespace decoder_detail {

void run_pass(const Weights& weights, const DecoderInput& input, const DecoderOutput& output,
              const Indices& indices, const Buffers& buffers, int threads);

}  // namespace decoder_detail
}  // namespace fastbert
