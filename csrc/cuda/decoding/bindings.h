// Bindings of the ops that only models which write text need, added to the extension's module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastbert::cuda {

void bind_decoding(pybind11::module_& m);

}  // namespace fastbert::cuda
