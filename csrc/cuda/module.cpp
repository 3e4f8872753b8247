// Bindings of the CUDA kernels (fastbert._cuda): pointers, sizes and codes in, errors out.
// std::invalid_argument becomes ValueError, std::runtime_error RuntimeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "cuda/attention/bindings.h"
#include "cuda/decoding/bindings.h"
#include "cuda/gemm/bindings.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace py = pybind11;
using namespace fastbert;
using address_t = std::uintptr_t;  // 0: absent

namespace {

template <typename T = void>
T* pointer(address_t address) {
    return reinterpret_cast<T*>(address);
}

cuda::Target target(int device, address_t stream) { return {device, pointer(stream)}; }

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "fastbert's CUDA kernels. Internal: use fastbert.ops.";
    using release_gil = py::call_guard<py::gil_scoped_release>;

    m.def("unavailable", &cuda::unavailable);
    cuda::bind_gemm(m);
    cuda::bind_attention(m);
    cuda::bind_decoding(m);
    m.def("row_config", [](index_t rows, index_t width) {
        const cuda::RowConfig config = cuda::row_config("row_config", rows, width);
        return std::make_tuple(config.warps_per_row, config.rows_per_block, config.blocks);
    });
    m.def("element_config", [](index_t rows, index_t width, int dtype) {
        const cuda::ElementConfig config =
            cuda::element_config("element_config", rows, width, static_cast<DType>(dtype));
        return std::make_tuple(config.threads, config.blocks_x, config.blocks_y);
    });
    m.def("rows_aligned", [](address_t data, index_t stride, index_t width, int dtype) {
        return cuda::rows_aligned(pointer(data), stride, width, static_cast<DType>(dtype));
    });
    m.def(
        "row_norm",
        [](const char* op, address_t x, address_t x_bias, address_t residual, address_t weight,
           address_t bias, address_t out, address_t sum, index_t rows, index_t width,
           index_t x_stride, index_t residual_stride, index_t out_stride, int dtype, int activation,
           float activation_a, float activation_b, float eps, int device, address_t stream) {
            cuda::RowNorm args;
            args.x = pointer(x);
            args.x_bias = pointer(x_bias);
            args.residual = pointer(residual);
            args.weight = pointer(weight);
            args.bias = pointer(bias);
            args.out = pointer(out);
            args.sum = pointer(sum);
            args.rows = rows;
            args.width = width;
            args.x_stride = x_stride;
            args.residual_stride = residual_stride;
            args.out_stride = out_stride;
            args.dtype = static_cast<DType>(dtype);
            args.activation = static_cast<Activation>(activation);
            args.activation_params = {activation_a, activation_b};
            args.eps = eps;
            cuda::row_norm(op, args, target(device, stream));
        },
        release_gil());
    m.def(
        "bias_act",
        [](address_t x, address_t bias, address_t out, index_t rows, index_t width,
           index_t x_stride, index_t out_stride, int dtype, int activation, float activation_a,
           float activation_b, int device, address_t stream) {
            cuda::BiasAct args;
            args.x = pointer(x);
            args.bias = pointer(bias);
            args.out = pointer(out);
            args.rows = rows;
            args.width = width;
            args.x_stride = x_stride;
            args.out_stride = out_stride;
            args.dtype = static_cast<DType>(dtype);
            args.activation = static_cast<Activation>(activation);
            args.activation_params = {activation_a, activation_b};
            cuda::bias_act(args, target(device, stream));
        },
        release_gil());
    m.def(
        "embed_norm",
        [](address_t embeds, index_t embeds_stride,
           const std::array<std::tuple<address_t, address_t, index_t>, 4>& gathers,
           address_t weight, address_t bias, address_t out, index_t tokens, index_t width,
           int dtype, float eps, int device, address_t stream) {
            cuda::EmbedNorm args;
            args.embeds = pointer(embeds);
            args.embeds_stride = embeds_stride;
            for (int g = 0; g < 4; ++g) {
                const auto& [ids, table, entries] = gathers[g];
                args.gathers[g] = {pointer<const std::int64_t>(ids), pointer(table), entries};
            }
            args.weight = pointer(weight);
            args.bias = pointer(bias);
            args.out = pointer(out);
            args.tokens = tokens;
            args.width = width;
            args.dtype = static_cast<DType>(dtype);
            args.eps = eps;
            cuda::embed_norm(args, target(device, stream));
        },
        release_gil());
    m.def(
        "quantize_rows",
        [](address_t x, address_t q, address_t scale, address_t zero_point, index_t rows,
           index_t width, index_t x_stride, int dtype, int device, address_t stream) {
            cuda::QuantizeRows args;
            args.x = pointer(x);
            args.q = pointer<std::uint8_t>(q);
            args.scale = pointer<float>(scale);
            args.zero_point = pointer<std::int32_t>(zero_point);
            args.rows = rows;
            args.width = width;
            args.x_stride = x_stride;
            args.dtype = static_cast<DType>(dtype);
            cuda::quantize_rows(args, target(device, stream));
        },
        release_gil());
}
