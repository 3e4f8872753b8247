#include "cuda/decoding/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "cuda/decoding/decoding.h"

namespace py = pybind11;

namespace fastbert::cuda {

namespace {

using address_t = std::uintptr_t;  // 0: absent

void* pointer(address_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

void bind_decoding(py::module_& m) {
    using release_gil = py::call_guard<py::gil_scoped_release>;
    m.def(
        "rms_norm",
        [](address_t x, address_t residual, address_t weight, address_t out, address_t sum,
           index_t rows, index_t width, index_t x_stride, index_t residual_stride,
           index_t out_stride, int dtype, float eps, int device, address_t stream) {
            RmsNorm args;
            args.x = pointer(x);
            args.residual = pointer(residual);
            args.weight = pointer(weight);
            args.out = pointer(out);
            args.sum = pointer(sum);
            args.rows = rows;
            args.width = width;
            args.x_stride = x_stride;
            args.residual_stride = residual_stride;
            args.out_stride = out_stride;
            args.dtype = static_cast<DType>(dtype);
            args.eps = eps;
            rms_norm(args, {device, pointer(stream)});
        },
        release_gil());
    m.def(
        "xielu",
        // Addresses of alpha_p, alpha_n, beta and eps.
        [](address_t x, const std::array<address_t, 4>& numbers, address_t out, index_t rows,
           index_t width, index_t x_stride, index_t out_stride, int dtype, int device,
           address_t stream) {
            Xielu args;
            args.x = pointer(x);
            args.alpha_p = pointer(numbers[0]);
            args.alpha_n = pointer(numbers[1]);
            args.beta = pointer(numbers[2]);
            args.eps = pointer(numbers[3]);
            args.out = pointer(out);
            args.rows = rows;
            args.width = width;
            args.x_stride = x_stride;
            args.out_stride = out_stride;
            args.dtype = static_cast<DType>(dtype);
            xielu(args, {device, pointer(stream)});
        },
        release_gil());
    m.def("head_config", [](index_t tokens, index_t heads, index_t dim, int dtype) {
        const HeadConfig config =
            head_config("head_config", tokens, heads, dim, static_cast<DType>(dtype));
        return std::make_tuple(config.lanes, config.heads_per_block, config.blocks_x,
                               config.blocks_y);
    });
    m.def(
        "qk_norm_rope",
        // Of q, k, v and their results: addresses, then strides between tokens and between heads.
        // Of the cache: the rows and their number. Of the angles: addresses of cos and sin,
        // strides.
        [](const std::array<address_t, 6>& operands, const std::array<index_t, 12>& strides,
           const std::tuple<address_t, index_t>& cache, const std::array<address_t, 2>& weights,
           const std::array<address_t, 2>& angles, const std::array<index_t, 2>& angle_strides,
           index_t tokens, index_t heads, index_t kv_heads, index_t dim, int dtype, float eps,
           int device, address_t stream) {
            QkNormRope args;
            Heads* const of[] = {&args.q, &args.k, &args.v, &args.q_out, &args.k_out, &args.v_out};
            for (int i = 0; i < 6; ++i) {
                *of[i] = {pointer(operands[i]), strides[2 * i], strides[2 * i + 1]};
            }
            args.cache_rows = static_cast<const std::int64_t*>(pointer(std::get<0>(cache)));
            args.cache_size = std::get<1>(cache);
            args.q_weight = pointer(weights[0]);
            args.k_weight = pointer(weights[1]);
            args.cos = static_cast<const float*>(pointer(angles[0]));
            args.sin = static_cast<const float*>(pointer(angles[1]));
            args.cos_stride = angle_strides[0];
            args.sin_stride = angle_strides[1];
            args.tokens = tokens;
            args.heads = heads;
            args.kv_heads = kv_heads;
            args.dim = dim;
            args.dtype = static_cast<DType>(dtype);
            args.eps = eps;
            qk_norm_rope(args, {device, pointer(stream)});
        },
        release_gil());
    m.def("few_rows_config", [](index_t rows, index_t width, int x_dtype) {
        const FewRowsConfig config =
            few_rows_config("few_rows_config", rows, width, static_cast<DType>(x_dtype));
        return std::make_tuple(config.rows, config.columns, config.blocks_x, config.blocks_y);
    });
    m.def(
        "linear_w8a16",
        // Addresses of x, weight, scale, bias, residual and the result; strides of x, weight,
        // residual and the result; rows, N and K.
        [](const std::array<address_t, 6>& operands, const std::array<index_t, 4>& strides,
           const std::array<index_t, 3>& sizes, int x_dtype, int dtype, int activation,
           float activation_a, float activation_b, int device, address_t stream) {
            LinearW8A16 args;
            args.x = pointer(operands[0]);
            args.weight = static_cast<const std::int8_t*>(pointer(operands[1]));
            args.scale = static_cast<const float*>(pointer(operands[2]));
            args.bias = pointer(operands[3]);
            args.residual = pointer(operands[4]);
            args.out = pointer(operands[5]);
            args.x_stride = strides[0];
            args.weight_stride = strides[1];
            args.residual_stride = strides[2];
            args.out_stride = strides[3];
            args.rows = sizes[0];
            args.width = sizes[1];
            args.depth = sizes[2];
            args.x_dtype = static_cast<DType>(x_dtype);
            args.dtype = static_cast<DType>(dtype);
            args.activation = static_cast<Activation>(activation);
            args.activation_params = {activation_a, activation_b};
            linear_w8a16(args, {device, pointer(stream)});
        },
        release_gil());
}

}  // namespace fastbert::cuda
