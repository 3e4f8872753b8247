#include "cuda/attention/attention.h"

#include <cstdint>
#include <string>

#include "common/check.h"
#include "cuda/launch.h"

namespace fastbert::cuda {

namespace {

constexpr index_t max_tokens = index_t{1} << 31;
constexpr int max_blocks_y = 65535;  // and along z

void check_heads(const char* op, const char* what, const void* data, index_t tokens, index_t stride,
                 index_t head, const AttentionVarlen& args) {
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

void check_attention(const char* op, const AttentionVarlen& args, const SingleQueries& singles) {
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
    if (args.kv_heads < 1 || args.heads % args.kv_heads != 0) {
        fail(op, "there are " + std::to_string(args.kv_heads) +
                     " key/value heads, expected a divisor of the " + std::to_string(args.heads) +
                     " heads.");
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
    check_heads(op, "q", args.q, args.total_q, args.q_stride, args.q_head, args);
    check_heads(op, "k", args.k, args.total_k, args.k_stride, args.k_head, args);
    check_heads(op, "v", args.v, args.total_k, args.v_stride, args.v_head, args);
    check_heads(op, "out", args.out, args.total_q, index_t{args.heads} * args.dim, args.dim, args);
    if (!singles.apart) return;
    if (singles.chunks < 1 || singles.chunks > max_blocks_y) {
        fail(op, "the longest sequence has " + std::to_string(singles.chunks) + " chunks of " +
                     std::to_string(decode_chunk) + " keys, expected 1 to 65535.");
    }
    if (singles.chunks > 1 && singles.parts == nullptr) fail(op, "the chunks' parts are missing.");
}

TensorShape attention_view(const void* data, index_t tokens, int heads, index_t stride,
                           index_t head_stride, int rows, const AttentionVarlen& args) {
    TensorShape shape;
    shape.data = data;
    shape.dtype = args.dtype;
    shape.rank = 3;
    shape.size[0] = args.dim;
    shape.size[1] = heads;
    shape.size[2] = tokens;
    shape.stride[1] = head_stride;
    shape.stride[2] = stride;
    shape.box[0] = attention_plan_sm90(args.dim).row_bytes / 2;
    shape.box[1] = 1;
    shape.box[2] = rows;
    return shape;
}

namespace {

void start_form(const AttentionVarlen& args, const DeviceTraits& device, void* stream) {
    if (args.dtype == DType::f32) {
        start_attention_f32(args, stream);
    } else if (device.major == 9) {
        if (args.dtype == DType::bf16) {
            start_attention_sm90<DType::bf16>(args, device.multiprocessors, stream);
        } else {
            start_attention_sm90<DType::f16>(args, device.multiprocessors, stream);
        }
    } else if (args.dtype == DType::bf16) {
        start_attention_sm80<DType::bf16>(args, stream);
    } else {
        start_attention_sm80<DType::f16>(args, stream);
    }
}

void start_decode(const AttentionVarlen& args, const SingleQueries& singles, void* stream) {
    if (args.dtype == DType::f32) {
        start_attention_decode<DType::f32>(args, singles, stream);
    } else if (args.dtype == DType::bf16) {
        start_attention_decode<DType::bf16>(args, singles, stream);
    } else {
        start_attention_decode<DType::f16>(args, singles, stream);
    }
}

}  // namespace

void attention_varlen(const char* op, const AttentionVarlen& args, const SingleQueries& singles,
                      const Target& target) {
    check_attention(op, args, singles);
    if (args.total_q == 0 || args.batch == 0) return;
    const Launch launch(op, target.device);
    if (!singles.apart || !singles.only) {
        AttentionVarlen others = args;
        others.singles_apart = singles.apart;
        start_form(others, device_traits(op, target.device), target.stream);
        launch.check();
    }
    if (singles.apart) {
        start_decode(args, singles, target.stream);
        launch.check();
    }
}

}  // namespace fastbert::cuda
