#include "cuda/attention/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "cuda/attention/attention.h"

namespace py = pybind11;

namespace fastbert::cuda {

void bind_attention(py::module_& m) {
    using address_t = std::uintptr_t;  // 0: absent
    m.def("attention_plan_sm90", [](int dim) {
        const AttentionPlan plan = attention_plan_sm90(dim);
        return std::make_tuple(plan.warpgroups, plan.stages, plan.row_bytes, plan.threads(),
                               plan.shared_bytes);
    });
    m.def("attention_shared_sm80", &attention_shared_sm80);
    m.def("attention_shared_f32", &attention_shared_f32);
    m.def("attention_slots", &attention_slots);
    m.attr("decode_chunk") = decode_chunk;
    m.def("decode_part_floats", &decode_part_floats);
    m.def(
        "attention_varlen",
        // Addresses of q, k, v and the result, then of the offsets; strides of q, k and v between
        // tokens and between heads; heads of q, and of k and v. Of single queries: whether they are
        // apart, whether there are no others, chunks, address of the parts.
        [](const char* op, const std::array<address_t, 4>& operands,
           const std::array<address_t, 2>& offsets, address_t key_bias, address_t bias,
           const std::array<index_t, 3>& bias_strides, const std::array<index_t, 2>& totals,
           const std::array<index_t, 6>& strides, int batch, const std::array<int, 2>& heads,
           int dim, int dtype, bool causal, float scale,
           const std::tuple<bool, bool, int, address_t>& singles, int device, address_t stream) {
            const auto pointer = [](address_t address) { return reinterpret_cast<void*>(address); };
            AttentionVarlen args;
            args.q = pointer(operands[0]);
            args.k = pointer(operands[1]);
            args.v = pointer(operands[2]);
            args.out = pointer(operands[3]);
            args.cu_q = static_cast<const std::int32_t*>(pointer(offsets[0]));
            args.cu_k = static_cast<const std::int32_t*>(pointer(offsets[1]));
            args.key_bias = static_cast<const float*>(pointer(key_bias));
            args.bias = static_cast<const float*>(pointer(bias));
            for (int d = 0; d < 3; ++d) args.bias_stride[d] = bias_strides[d];
            args.total_q = totals[0];
            args.total_k = totals[1];
            args.q_stride = strides[0];
            args.q_head = strides[1];
            args.k_stride = strides[2];
            args.k_head = strides[3];
            args.v_stride = strides[4];
            args.v_head = strides[5];
            args.batch = batch;
            args.heads = heads[0];
            args.kv_heads = heads[1];
            args.dim = dim;
            args.dtype = static_cast<DType>(dtype);
            args.causal = causal;
            args.scale = scale;
            const auto [apart, only, chunks, parts] = singles;
            attention_varlen(op, args, {apart, only, chunks, static_cast<float*>(pointer(parts))},
                             {device, pointer(stream)});
        },
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastbert::cuda
