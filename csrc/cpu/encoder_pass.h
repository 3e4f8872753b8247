// One forward pass over buffers that are laid out and filled, on arguments that were checked.
#pragma once

#include "cpu/encoder.h"
#include "cpu/encoder_memory.h"
#include "cpu/encoder_weights.h"

namespace fastbert {
namespace encoder_detail {

void run_pass(const Weights& weights, const EncoderInput& input, const EncoderOutput& output,
              const Buffers& buffers, int threads, EncoderProfile* profile);

}  // namespace encoder_detail
}  // namespace fastbert
