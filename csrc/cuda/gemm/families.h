// The families of product kernels, as the driver calls them: descriptions are checked, the device
// is current, config came from gemm_config.
#pragma once

#include "cuda/gemm/gemm.h"

namespace fastbert::cuda {

void gemm_fma(const Gemm& args, const GemmConfig& config, void* stream);
void gemm_mma(const Gemm& args, const GemmConfig& config, void* stream);
void gemm_wgmma(const Gemm& args, const GemmConfig& config, int multiprocessors, void* stream);

}  // namespace fastbert::cuda
