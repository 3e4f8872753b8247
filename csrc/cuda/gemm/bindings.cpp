#include "cuda/gemm/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/gemm/gemm.h"

namespace py = pybind11;

namespace fastbert::cuda {

namespace {

using address_t = std::uintptr_t;  // 0: absent

template <typename T = void>
T* pointer(address_t address) {
    return reinterpret_cast<T*>(address);
}

Gemm shape(index_t rows, index_t width, index_t depth, int dtype, int family, int choice) {
    Gemm args;
    args.rows = rows;
    args.width = width;
    args.depth = depth;
    args.x_stride = args.weight_stride = depth;
    args.dtype = static_cast<DType>(dtype);
    args.family = static_cast<Family>(family);
    args.choice = choice;
    return args;
}

}  // namespace

void bind_gemm(py::module_& m) {
    using release_gil = py::call_guard<py::gil_scoped_release>;

    m.attr("max_integer_depth") = max_integer_depth;
    m.def("gemm_config", [](index_t rows, index_t width, index_t depth, int dtype, int family,
                            int choice, int major, int multiprocessors) {
        Gemm args = shape(rows, width, depth, dtype, family, choice);
        // Any aligned address: the choice looks at alignment, not at memory.
        args.weight = pointer(4096);
        const GemmConfig config = gemm_config("gemm_config", args, {major, multiprocessors});
        return std::make_tuple(static_cast<int>(config.family), config.choice, config.tile.rows,
                               config.tile.columns, config.tiles_m, config.tiles_n);
    });
    m.def("tile_order", [](int tiles_m, int tiles_n) {
        const TileOrder order{tiles_m, tiles_n};
        std::vector<std::pair<int, int>> places;
        for (int index = 0; index < tiles_m * tiles_n; ++index) {
            const TileOrder::Place place = order.at(index);
            places.emplace_back(place.m, place.n);
        }
        return places;
    });
    m.def(
        "gemm",
        [](const char* op, address_t x, index_t x_stride, address_t weight, index_t weight_stride,
           index_t rows, index_t width, index_t depth, int dtype, int family, int choice,
           address_t bias, address_t residual, index_t residual_stride, address_t out,
           index_t out_stride, int out_dtype, int activation, float activation_a,
           float activation_b, address_t row_scale, address_t row_zero_point,
           address_t column_scale, address_t column_sums, address_t out_scale,
           address_t out_zero_point, int device, address_t stream) {
            Gemm args = shape(rows, width, depth, dtype, family, choice);
            args.x = pointer(x);
            args.x_stride = x_stride;
            args.weight = pointer(weight);
            args.weight_stride = weight_stride;
            Epilogue& epilogue = args.epilogue;
            epilogue.bias = pointer(bias);
            epilogue.residual = pointer(residual);
            epilogue.residual_stride = residual_stride;
            epilogue.out = pointer(out);
            epilogue.out_stride = out_stride;
            epilogue.dtype = static_cast<DType>(out_dtype);
            epilogue.activation = static_cast<Activation>(activation);
            epilogue.activation_params = {activation_a, activation_b};
            epilogue.row_scale = pointer<float>(row_scale);
            epilogue.row_zero_point = pointer<std::int32_t>(row_zero_point);
            epilogue.column_scale = pointer<float>(column_scale);
            epilogue.column_sums = pointer<std::int32_t>(column_sums);
            epilogue.out_scale = pointer<float>(out_scale);
            epilogue.out_zero_point = pointer<std::int32_t>(out_zero_point);
            gemm(op, args, {device, pointer(stream)});
        },
        release_gil());
    m.def(
        "weight_sums",
        [](address_t weight, address_t sums, index_t width, index_t depth, index_t weight_stride,
           int device, address_t stream) {
            WeightSums args;
            args.weight = pointer<std::int8_t>(weight);
            args.sums = pointer<std::int32_t>(sums);
            args.width = width;
            args.depth = depth;
            args.weight_stride = weight_stride;
            weight_sums(args, {device, pointer(stream)});
        },
        release_gil());
}

}  // namespace fastbert::cuda
