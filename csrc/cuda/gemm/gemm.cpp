// The driver of the products: checks the description, chooses, launches.
#include "cuda/gemm/gemm.h"

#include <cstdint>
#include <string>

#include "common/check.h"
#include "cuda/gemm/families.h"
#include "cuda/launch.h"

namespace fastbert::cuda {

namespace {

void check_present(const char* op, const char* what, const void* data, index_t elements) {
    if (data == nullptr && elements > 0)
        fail(op, std::string(what) + " is missing; 8-bit operands need it.");
}

void check(const char* op, const Gemm& args) {
    const Epilogue& out = args.epilogue;
    if (args.dtype != DType::u8) check_float_dtype(op, "x", args.dtype);
    check_float_dtype(op, "the result", out.dtype);
    check_activation(op, out.activation, Activation::scaled_silu);
    check_size(op, "rows", args.rows);
    check_size(op, "N", args.width);
    check_size(op, "K", args.depth);
    check_matrix(op, "x", args.x, args.rows, args.depth, args.x_stride);
    check_matrix(op, "weight", args.weight, args.width, args.depth, args.weight_stride);
    check_matrix(op, "out", out.out, args.rows, args.width, out.out_stride);
    if (out.residual != nullptr) {
        check_matrix(op, "residual", out.residual, args.rows, args.width, out.residual_stride);
    }
    if (args.depth > max_depth) {
        fail(op, "K is " + std::to_string(args.depth) + ", the kernels count to " +
                     std::to_string(max_depth) + ".");
    }
    if (args.dtype != DType::u8) {
        if (out.dtype != args.dtype) {
            fail(op, std::string("the result is ") + name_of(out.dtype) + ", x is " +
                         name_of(args.dtype) + "; they must agree.");
        }
        if (out.out_scale != nullptr) fail(op, "only 8-bit operands have a requantised result.");
        return;
    }
    if (args.depth > max_integer_depth) {
        fail(op, "K is " + std::to_string(args.depth) + ", expected at most " +
                     std::to_string(max_integer_depth) + ": int32 sums could overflow beyond.");
    }
    check_present(op, "the scale of x", out.row_scale, args.rows);
    check_present(op, "the zero_point of x", out.row_zero_point, args.rows);
    check_present(op, "the scale of the weight", out.column_scale, args.width);
    check_present(op, "the sums of the weight", out.column_sums, args.width);
    if (reinterpret_cast<std::uintptr_t>(out.column_sums) % alignof(std::int32_t) != 0) {
        fail(op, "the sums of the weight must start on 4 bytes; copy them first.");
    }
    if ((out.out_scale == nullptr) != (out.out_zero_point == nullptr)) {
        fail(op, "a requantised result needs both a scale and a zero_point.");
    }
}

bool wide(const Epilogue& out) {
    const DType stored = out.out_scale == nullptr ? out.dtype : DType::u8;
    // Bytes are stored eight at a time: half of what rows_aligned asks for, seldom worth a case.
    return rows_aligned(out.out, out.out_stride, out.width, stored) &&
           rows_aligned(out.bias, out.width, out.width, out.dtype) &&
           rows_aligned(out.column_scale, out.width, out.width, DType::f32) &&
           rows_aligned(out.column_sums, out.width, out.width, DType::f32) &&
           (out.residual == nullptr ||
            rows_aligned(out.residual, out.residual_stride, out.width, out.dtype));
}

}  // namespace

void gemm(const char* op, const Gemm& given, const Target& target) {
    Gemm args = given;
    args.epilogue.rows = args.rows;
    args.epilogue.width = args.width;
    check(op, args);
    if (args.rows == 0 || args.width == 0) return;
    args.epilogue.wide = wide(args.epilogue);
    const Launch launch(op, target.device);
    const DeviceTraits traits = device_traits(op, target.device);
    const GemmConfig config = gemm_config(op, args, traits);
    if (config.family == Family::wgmma &&
        !rows_aligned(args.x, args.x_stride, args.depth, args.dtype)) {
        // Another family would sum in another order, and so would depend on how x lies in memory.
        fail(op, "x must have rows that start on 16 bytes, as the weight's do; copy it first.");
    }
    switch (config.family) {
        case Family::fma:
            gemm_fma(args, config, target.stream);
            break;
        case Family::mma:
            gemm_mma(args, config, target.stream);
            break;
        default:
            gemm_wgmma(args, config, traits.multiprocessors, target.stream);
    }
    launch.check();
}

}  // namespace fastbert::cuda
