#include "cuda/attention/decode.cuh"

namespace fastbert::cuda {

template void start_attention_decode<DType::f16>(const AttentionVarlen&, const SingleQueries&,
                                                 void*);

}  // namespace fastbert::cuda
