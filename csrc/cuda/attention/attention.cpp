#include "cuda/attention/attention.h"

#include <cstdint>
#include <string>

#include "common/check.h"
#include "cuda/launch.h"

namespace fastbert::cuda {

namespace {

constexpr const char* op = "attention_varlen";
constexpr index_t max_tokens = index_t{1} << 31;
constexpr int max_blocks_y = 65535;

void check_heads(const char* what, const void* data, index_t tokens, index_t stride, index_t head,
                 const AttentionVarlen& args) {
    if (tokens == 0) return;
    const index_t bytes = size_of(args.dtype);
    if (data == nullptr) fail(op, std::string(what) + " is missing.");
    if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || stride * bytes % 16 != 0 ||
        head * bytes % 16 != 0 || stride < 1 || head < 1) {
        fail(op,
             std::string(what) +
                 " has heads that do not start on 16-byte boundaries; copy it into a contiguous "
                 "tensor first.");
    }
}

}  // namespace

void check_attention(const AttentionVarlen& args) {
    check_float_dtype(op, "q", args.dtype);
    check_size(op, "total_q", args.total_q);
    check_size(op, "total_k", args.total_k);
    check_size(op, "batch", args.batch);
    if (!attention_dim(args.dim)) {
        fail(op, "head_dim is " + std::to_string(args.dim) +
                     ", the cuda kernels have 32, 64, 80, 96, 128; choose another backend.");
    }
    if (args.heads < 1 || args.heads > max_blocks_y) {
        fail(op, "there are " + std::to_string(args.heads) + " heads, expected 1 to 65535.");
    }
    if (args.total_q >= max_tokens || args.total_k >= max_tokens ||
        attention_slots(args.total_q, args.batch) >= max_tokens) {
        fail(op, "a batch has 2^31 tokens or more; split it.");
    }
    if (!(args.scale > 0)) {
        fail(op, "scale is " + std::to_string(args.scale) + ", expected a positive number.");
    }
    if (args.batch > 0 && (args.cu_q == nullptr || args.cu_k == nullptr)) {
        fail(op, "cu_seqlens is missing.");
    }
    check_heads("q", args.q, args.total_q, args.q_stride, args.q_head, args);
    check_heads("k", args.k, args.total_k, args.k_stride, args.k_head, args);
    check_heads("v", args.v, args.total_k, args.v_stride, args.v_head, args);
    check_heads("out", args.out, args.total_q, index_t{args.heads} * args.dim, args.dim, args);
}

TensorShape attention_view(const void* data, index_t tokens, index_t stride, index_t head_stride,
                           int rows, const AttentionVarlen& args) {
    TensorShape shape;
    shape.data = data;
    shape.dtype = args.dtype;
    shape.rank = 3;
    shape.size[0] = args.dim;
    shape.size[1] = args.heads;
    shape.size[2] = tokens;
    shape.stride[1] = head_stride;
    shape.stride[2] = stride;
    shape.box[0] = attention_plan_sm90(args.dim).row_bytes / 2;
    shape.box[1] = 1;
    shape.box[2] = rows;
    return shape;
}

void attention_varlen(const AttentionVarlen& args, const Target& target) {
    check_attention(args);
    if (args.total_q == 0 || args.batch == 0) return;
    const Launch launch(op, target.device);
    const DeviceTraits device = device_traits(op, target.device);
    if (args.dtype == DType::f32) {
        start_attention_f32(args, target.stream);
    } else if (device.major == 9) {
        if (args.dtype == DType::bf16) {
            start_attention_sm90<DType::bf16>(args, device.multiprocessors, target.stream);
        } else {
            start_attention_sm90<DType::f16>(args, device.multiprocessors, target.stream);
        }
    } else if (args.dtype == DType::bf16) {
        start_attention_sm80<DType::bf16>(args, target.stream);
    } else {
        start_attention_sm80<DType::f16>(args, target.stream);
    }
    launch.check();
}

}  // namespace fastbert::cuda
