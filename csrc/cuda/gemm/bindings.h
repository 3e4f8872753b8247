// Bindings of the matrix products, added to the extension's module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastbert::cuda {

void bind_gemm(pybind11::module_& m);

}  // namespace fastbert::cuda
