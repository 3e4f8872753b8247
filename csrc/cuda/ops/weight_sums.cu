#include "common/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

constexpr int threads = 128;

// One warp a row. Integers: the order of the sum does not matter.
__global__ void weight_sums_kernel(WeightSums args) {
    const index_t row = (static_cast<index_t>(blockIdx.x) * threads + threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int sum = 0;
    if (row < args.width) {
        for (index_t k = lane; k < args.depth; k += 32) {
            sum += args.weight[row * args.weight_stride + k];
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(full_mask, sum, step);
    if (lane == 0 && row < args.width) args.sums[row] = sum;
}

}  // namespace

void weight_sums(const WeightSums& args, const Target& target) {
    const char* op = "weight_sums";
    check_size(op, "N", args.width);
    check_size(op, "K", args.depth);
    check_matrix(op, "qweight", args.weight, args.width, args.depth, args.weight_stride);
    check_matrix(op, "sums", args.sums, 1, args.width, args.width);
    if (args.depth > max_integer_depth) {
        fail(op, "K is " + std::to_string(args.depth) + ", expected at most " +
                     std::to_string(max_integer_depth) + ": int32 sums could overflow beyond.");
    }
    if (args.width == 0) return;
    constexpr index_t rows_per_block = threads / 32;
    const index_t blocks = (args.width + rows_per_block - 1) / rows_per_block;
    if (blocks > 2147483647) fail(op, "the weight has more rows than one launch covers.");
    const Launch launch(op, target.device);
    start(weight_sums_kernel, dim3(static_cast<unsigned>(blocks)), threads, target.stream, args);
    launch.check();
}

}  // namespace fastbert::cuda
