#include "cpu/ops/qk_norm_rope.h"

#include <string>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

constexpr const char* op = "qk_norm_rope";

void check_heads(const char* what, const HeadsAt& heads, index_t tokens, index_t count) {
    if (heads.data == nullptr && tokens > 0 && count > 0) {
        fail(op, std::string(what) + " is a null pointer.");
    }
}

}  // namespace

void qk_norm_rope(const QkNormRopeArgs& args) {
    check_float_dtype(op, "q", args.dtype);
    check_eps(op, args.q_eps);
    check_eps(op, args.k_eps);
    check_size(op, "tokens", args.tokens);
    check_size(op, "num_heads", args.num_heads);
    check_size(op, "num_kv_heads", args.num_kv_heads);
    check_size(op, "head_dim", args.head_dim);
    if (args.head_dim % 2 != 0) {
        fail(op, "head_dim is " + std::to_string(args.head_dim) + "; it must be even.");
    }
    check_heads("q", args.q, args.tokens, args.num_heads);
    check_heads("q_out", args.q_out, args.tokens, args.num_heads);
    check_heads("k", args.k, args.tokens, args.num_kv_heads);
    check_heads("k_out", args.k_out, args.tokens, args.num_kv_heads);
    if (args.v.data != nullptr) check_heads("v_out", args.v_out, args.tokens, args.num_kv_heads);
    check_matrix(op, "cos", args.cos, args.tokens, args.head_dim / 2, args.rope_stride);
    check_matrix(op, "sin", args.sin, args.tokens, args.head_dim / 2, args.rope_stride);
    const KernelTable& table = active_kernels();
    const Float32Param q_weight(op, "q_weight", args.q_weight, args.head_dim, true, table);
    const Float32Param k_weight(op, "k_weight", args.k_weight, args.head_dim, true, table);
    if (args.tokens == 0 || args.head_dim == 0) return;
    const auto kernel = table.qk_norm_rope.rows[static_cast<int>(args.dtype)];
    const index_t heads = args.num_heads + args.num_kv_heads;
    for_row_blocks(args.tokens, 2 * heads * args.head_dim * size_of(args.dtype),
                   [&](index_t first, index_t count) {
                       kernel(args, q_weight.get(), k_weight.get(), first, count,
                              thread_scratch(args.head_dim));
                   });
}

}  // namespace fastbert
