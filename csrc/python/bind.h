// Bindings speak pointers (as integers), sizes, strides and codes, in the structs of the drivers
// (record.h). They hold no loops and no checks: the drivers check everything. std::invalid_argument
// becomes ValueError, std::out_of_range IndexError. To add an op: bind_<op>.cpp, a line here, one
// in module.cpp, and its signature in fastbert/_C.pyi.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/types.h"
#include "python/record.h"

namespace fastbert {

namespace py = pybind11;

using address_t = std::uintptr_t;  // 0: absent

template <typename T = void>
T* pointer(address_t address) {
    return reinterpret_cast<T*>(address);
}

// Kernels run without the GIL.
using release_gil = py::call_guard<py::gil_scoped_release>;

void bind_runtime(py::module_& m);
void bind_images(py::module_& m);
void bind_layer_norm(py::module_& m);
void bind_peak(py::module_& m);
void bind_linear(py::module_& m);
void bind_quantize(py::module_& m);
void bind_segments(py::module_& m);
void bind_act(py::module_& m);
void bind_dropout(py::module_& m);
void bind_embed(py::module_& m);
void bind_attention(py::module_& m);
void bind_decoding(py::module_& m);
void bind_watch(py::module_& m);
void bind_sources(py::module_& m);
void bind_encoder(py::module_& m);
void bind_decoder(py::module_& m);

}  // namespace fastbert
