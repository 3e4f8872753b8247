// Argument checks of the drivers: std::invalid_argument with a sentence. Never used in kernels.
#pragma once

#include <stdexcept>
#include <string>

#include "common/types.h"

namespace fastbert {

const char* name_of(DType dtype);
const char* name_of(Activation activation);

// `op` names the operation in every message.
[[noreturn]] void fail(const char* op, const std::string& sentence);

// f32, bf16 or f16.
void check_float_dtype(const char* op, const char* what, DType dtype);
// `last`: the one with the highest code that the caller has kernels for.
void check_activation(const char* op, Activation activation, Activation last = Activation::xielu);
void check_size(const char* op, const char* what, index_t size);  // at least 0
// A matrix of `rows` rows of `columns` elements whose rows lie `stride` elements apart: present,
// and rows do not overlap.
void check_matrix(const char* op, const char* what, const void* data, index_t rows, index_t columns,
                  index_t stride);
void check_eps(const char* op, float eps);  // finite and not negative

}  // namespace fastbert
