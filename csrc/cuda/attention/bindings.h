#pragma once

#include <pybind11/pybind11.h>

namespace fastbert::cuda {

void bind_attention(pybind11::module_& m);

}  // namespace fastbert::cuda
