#include "cuda/attention/decode.cuh"

namespace fastbert::cuda {

template void start_attention_decode<DType::f32>(const AttentionVarlen&, const SingleQueries&,
                                                 void*);

}  // namespace fastbert::cuda
