#include "cuda/attention/sm90.cuh"

namespace fastbert::cuda {

template void start_attention_sm90<DType::bf16>(const AttentionVarlen&, int, void*);

}  // namespace fastbert::cuda
