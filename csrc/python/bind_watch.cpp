#include <algorithm>
#include <utility>

#include "common/sample.h"
#include "python/watch.h"

namespace fastbert {
namespace {

// Takes over a new reference to an integer; the error is Python's where there is none.
std::size_t taken(PyObject* number) {
    const py::object owned = py::reinterpret_steal<py::object>(number);
    if (!owned) throw py::error_already_set();
    const std::size_t value = PyLong_AsSize_t(owned.ptr());
    if (value == static_cast<std::size_t>(-1) && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kTensorBytes = 208, kStorageBytes = 96;  // about; of torch 2.13

void touch(const void* p) { (void)*static_cast<const volatile char*>(p); }

const PyDictObject* layout_of(const py::object& dict) {
    return reinterpret_cast<const PyDictObject*>(dict.ptr());
}

void prefetch(const char* begin, std::ptrdiff_t bytes) {
    for (std::ptrdiff_t at = 0; at < bytes; at += kLine) __builtin_prefetch(begin + at);
}

void collected(PyHeapTypeObject* heap_type) {
    PyTypeObject* const type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        // Not yet made, or made no more.
        if (!py::detail::is_holder_constructed(self)) return 0;
        return py::cast<Watch&>(py::handle(self)).traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
        py::cast<Watch&>(py::handle(self)).clear();
        return 0;
    };
}

}  // namespace

Watch::Watch(const py::list& dicts, const py::list& entries, const py::list& tensors,
             py::object address_of, py::object version_of)
    : address_of_(std::move(address_of)), version_of_(std::move(version_of)) {
    for (const py::handle item : dicts) {
        const auto dict = py::cast<py::dict>(item);
        sizes_.push_back({dict, PyDict_Size(dict.ptr())});
        for (const auto& pair : dict) add(dict, py::cast<py::object>(pair.first));
    }
    for (const py::handle item : entries) {
        const auto pair = py::cast<py::tuple>(item);
        add(pair[0], pair[1]);
    }
    for (const py::handle item : tensors) {
        const auto pair = py::cast<py::tuple>(item);
        Weight weight{pair[0],
                      py::cast<bool>(pair[1]),
                      py::cast<std::size_t>(pair[2]),
                      0,
                      0,
                      0,
                      pointer<const char>(py::cast<address_t>(pair[3])),
                      pointer<const char>(py::cast<address_t>(pair[4]))};
        weight.address = this->address_of(weight);
        if (weight.counted) weight.version = this->version_of(weight);
        weight.sample = sample_of(pointer(weight.address), weight.bytes);
        weights_.push_back(std::move(weight));
    }
}

void Watch::add(const py::object& dict, const py::object& key) {
    PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    entries_.push_back({dict, key, py::reinterpret_borrow<py::object>(value)});
}

std::size_t Watch::address_of(const Weight& weight) const {
    return taken(PyObject_CallOneArg(address_of_.ptr(), weight.tensor.ptr()));
}

std::size_t Watch::version_of(const Weight& weight) const {
    PyObject* const tensor = weight.tensor.ptr();
    PyTypeObject* const descriptor = Py_TYPE(version_of_.ptr());
    return taken(descriptor->tp_descr_get(version_of_.ptr(), tensor,
                                          reinterpret_cast<PyObject*>(Py_TYPE(tensor))));
}

void Watch::fetch() const {
    for (const Size& s : sizes_) touch(layout_of(s.dict));
    for (const Weight& w : weights_) touch(w.tensor.ptr());
    for (const Size& s : sizes_) touch(layout_of(s.dict)->ma_keys);
    for (const Size& s : sizes_) {
        __builtin_prefetch(reinterpret_cast<const char*>(layout_of(s.dict)->ma_keys) + kLine);
    }
    // Only prefetched: these are where the tensor's parts were, and may be nobody's memory by now.
    for (const Weight& w : weights_) prefetch(w.parts, kTensorBytes);
    for (const Weight& w : weights_) prefetch(w.storage, kStorageBytes);
}

bool Watch::unchanged(bool contents) const {
    const auto sized = [](const Size& s) { return PyDict_Size(s.dict.ptr()) == s.size; };
    const auto there = [](const Entry& e) {
        PyObject* const value = PyDict_GetItemWithError(e.dict.ptr(), e.key.ptr());
        if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
        return value == e.value.ptr();
    };
    const auto in_place = [&](const Weight& w) {
        return address_of(w) == w.address &&
               (!contents || !w.counted || version_of(w) == w.version);
    };
    const auto untouched = [](const Weight& w) {
        return sample_of(pointer(w.address), w.bytes) == w.sample;
    };
    fetch();
    if (!std::all_of(sizes_.begin(), sizes_.end(), sized) ||
        !std::all_of(entries_.begin(), entries_.end(), there) ||
        !std::all_of(weights_.begin(), weights_.end(), in_place)) {
        return false;
    }
    if (!contents) return true;
    // Of memory that is known to be there by now.
    for (const Weight& w : weights_) fetch_sample(pointer(w.address), w.bytes);
    return std::all_of(weights_.begin(), weights_.end(), untouched);
}

int Watch::traverse(visitproc visit, void* arg) const {
    for (const Size& s : sizes_) Py_VISIT(s.dict.ptr());
    for (const Entry& e : entries_) {
        Py_VISIT(e.dict.ptr());
        Py_VISIT(e.key.ptr());
        Py_VISIT(e.value.ptr());
    }
    for (const Weight& w : weights_) Py_VISIT(w.tensor.ptr());
    Py_VISIT(address_of_.ptr());
    Py_VISIT(version_of_.ptr());
    return 0;
}

void Watch::clear() {
    // Emptied before anything is released: releasing may run Python code that comes back here.
    std::vector<Size> sizes = std::move(sizes_);
    std::vector<Entry> entries = std::move(entries_);
    std::vector<Weight> weights = std::move(weights_);
    sizes_.clear();
    entries_.clear();
    weights_.clear();
}

void bind_watch(py::module_& m) {
    py::class_<Watch>(m, "Watch", py::custom_type_setup(collected),
                      "Notices changes of dictionaries and tensors; see csrc/python/watch.h.")
        .def(py::init<const py::list&, const py::list&, const py::list&, py::object, py::object>(),
             py::arg("dicts"), py::arg("entries"), py::arg("tensors"), py::arg("address_of"),
             py::arg("version_of"))
        .def("unchanged", &Watch::unchanged, py::arg("contents"),
             "Whether everything is as it was, the contents of tensors included where asked for.");
    m.def(
        "sample", [](address_t data, std::size_t bytes) { return sample_of(pointer(data), bytes); },
        py::arg("data"), py::arg("bytes"),
        "A number that tells whether memory still holds what it held; see csrc/common/sample.h.");
}

}  // namespace fastbert
