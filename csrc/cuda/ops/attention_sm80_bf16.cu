#include "cuda/attention/sm80.cuh"

namespace fastbert::cuda {

template void start_attention_sm80<DType::bf16>(const AttentionVarlen&, void*);

}  // namespace fastbert::cuda
