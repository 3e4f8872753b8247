#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cpu/fingerprint.h"
#include "python/watch.h"

namespace fastbert {
namespace {

void collected(PyHeapTypeObject* heap_type) {
    PyTypeObject* const type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        // Not made yet, or destroyed already.
        if (!py::detail::is_holder_constructed(self)) return 0;
        return py::cast<Watch&>(py::handle(self)).traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
        py::cast<Watch&>(py::handle(self)).clear();
        return 0;
    };
}

const DlExchange* first_version(const DlExchange* exchange) {
    return exchange == nullptr || exchange->major == 1 ? exchange
                                                       : first_version(exchange->previous);
}

const DlExchange* exchange_in(const py::object& capsule) {
    void* const found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (found == nullptr) throw py::error_already_set();
    const DlExchange* const exchange = first_version(static_cast<const DlExchange*>(found));
    if (exchange == nullptr) throw std::invalid_argument("torch offers no DLPack of version 1");
    return exchange;
}

// The value under a key, null where there is none.
PyObject* value_of(const py::object& dict, const py::object& key) {
    PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

bool has_type(const py::object& object, const py::object& type) {
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == type.ptr();
}

std::size_t number(const py::object& value) {
    const std::size_t found = PyLong_AsSize_t(value.ptr());
    if (found == static_cast<std::size_t>(-1) && PyErr_Occurred()) throw py::error_already_set();
    return found;
}

py::bytes fingerprint_of(address_t data, std::size_t size) {
    std::vector<Fingerprint> found;
    {
        const py::gil_scoped_release release;
        found = fingerprint(pointer(data), size);
    }
    return {reinterpret_cast<const char*>(found.data()), found.size() * sizeof(Fingerprint)};
}

}  // namespace

Getter::Getter(py::object descriptor) : descriptor_(std::move(descriptor)) {
    if (Py_TYPE(descriptor_.ptr()) != &PyGetSetDescr_Type) {
        throw std::invalid_argument("a Getter takes the descriptor of an attribute written in C");
    }
    from_ = reinterpret_cast<const PyGetSetDescrObject*>(descriptor_.ptr())->d_getset;
}

py::object Getter::operator()(const py::object& object) const {
    PyObject* const found = from_->get(object.ptr(), from_->closure);
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

Watch::Watch(const py::list& dicts, const py::list& entries, const py::list& methods,
             const py::list& objects, const py::list& tensors, const py::object& exchange,
             py::object version_of, py::object grad_of)
    : exchange_(exchange_in(exchange)),
      version_of_(std::move(version_of)),
      grad_of_(std::move(grad_of)) {
    for (const py::handle item : dicts) {
        const auto dict = py::cast<py::dict>(item);
        for (const auto& [key, value] : dict) {
            entries_.push_back({py::cast<py::object>(key), py::cast<py::object>(value)});
        }
        dicts_.push_back({dict, entries_.size()});
        dict_seal_.add(dict.ptr());
    }
    for (const py::handle item : entries) {
        const auto pair = py::cast<py::tuple>(item);
        const py::object dict = pair[0], key = pair[1];
        lookups_.push_back({dict, {key, py::reinterpret_borrow<py::object>(value_of(dict, key))}});
        lookup_seal_.add(dict.ptr());
    }
    for (const py::handle item : methods) {
        const auto told = py::cast<py::tuple>(item);
        const auto type = py::cast<py::type>(told[0]);
        methods_.push_back({type, told[1], told[2]});
        class_seal_.add(reinterpret_cast<PyTypeObject*>(type.ptr()));
    }
    for (const py::handle item : objects) {
        classes_.push_back({py::cast<py::object>(item), py::type::of(item)});
    }
    for (const py::handle item : tensors) {
        const auto told = py::cast<py::tuple>(item);
        Weight weight{told[0],
                      py::type::of(told[0]),
                      TensorLayout(told[0], *exchange_),
                      py::cast<bool>(told[1]),
                      py::cast<bool>(told[2]),
                      py::cast<bool>(told[3]),
                      0};
        if (weight.counted) weight.version = number(version_of_(weight.tensor));
        weights_.push_back(std::move(weight));
    }
}

bool Watch::same_dicts() const {
    std::size_t at = 0;
    for (const Dict& d : dicts_) {
        for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(d.dict)) {
            if (at == d.end) return false;
            const Entry& entry = entries_[at++];
            if (!key.is(entry.key) || !value.is(entry.value)) return false;
        }
        if (at != d.end) return false;
    }
    return true;
}

bool Watch::same_lookups() const {
    return std::all_of(lookups_.begin(), lookups_.end(), [](const Lookup& l) {
        return l.entry.value.ptr() == value_of(l.dict, l.entry.key);
    });
}

bool Watch::same_methods() const {
    return std::all_of(methods_.begin(), methods_.end(), [](const Method& m) {
        return py::getattr(m.type, m.name, py::none()).is(m.value);
    });
}

bool Watch::same_classes() const {
    return std::all_of(classes_.begin(), classes_.end(),
                       [](const Class& c) { return has_type(c.object, c.type); });
}

bool Watch::unchanged(const Weight& w, bool contents) const {
    // Before the layout: another class may keep its values elsewhere, and be no tensor to DLPack.
    if (!has_type(w.tensor, w.type)) return false;
    if (!w.layout.holds(w.tensor, *exchange_)) return false;
    if (!contents || !w.copied) return true;
    if (w.counted && number(version_of_(w.tensor)) != w.version) return false;
    return gradients_known || !w.leaf || grad_of_(w.tensor).is_none();
}

bool Watch::unchanged(bool contents) {
    // After a pass through a large model nothing of this is in the caches, and one look after the
    // other would wait for memory each time.
    dict_seal_.prefetch();
    lookup_seal_.prefetch();
    for (const Class& c : classes_) __builtin_prefetch(c.object.ptr());
    for (const Weight& w : weights_) __builtin_prefetch(w.tensor.ptr());
    for (const Weight& w : weights_) w.layout.prefetch();
    if (!dict_seal_.holds()) {
        if (!same_dicts()) return false;
        dict_seal_.close();
    }
    if (!lookup_seal_.holds()) {
        if (!same_lookups()) return false;
        lookup_seal_.close();
    }
    if (!class_seal_.holds()) {
        if (!same_methods()) return false;
        class_seal_.close();
    }
    return same_classes() && std::all_of(weights_.begin(), weights_.end(),
                                         [&](const Weight& w) { return unchanged(w, contents); });
}

int Watch::traverse(visitproc visit, void* arg) const {
    for (const Dict& d : dicts_) Py_VISIT(d.dict.ptr());
    for (const Entry& e : entries_) {
        Py_VISIT(e.key.ptr());
        Py_VISIT(e.value.ptr());
    }
    for (const Lookup& l : lookups_) {
        Py_VISIT(l.dict.ptr());
        Py_VISIT(l.entry.key.ptr());
        Py_VISIT(l.entry.value.ptr());
    }
    for (const Method& m : methods_) {
        Py_VISIT(m.type.ptr());
        Py_VISIT(m.name.ptr());
        Py_VISIT(m.value.ptr());
    }
    for (const Class& c : classes_) {
        Py_VISIT(c.object.ptr());
        Py_VISIT(c.type.ptr());
    }
    for (const Weight& w : weights_) {
        Py_VISIT(w.tensor.ptr());
        Py_VISIT(w.type.ptr());
    }
    return 0;
}

void Watch::clear() {
    // Emptied before anything is released: releasing may run Python code that comes back here.
    dict_seal_.clear();
    lookup_seal_.clear();
    class_seal_.clear();
    const auto dicts = std::exchange(dicts_, {});
    const auto entries = std::exchange(entries_, {});
    const auto lookups = std::exchange(lookups_, {});
    const auto methods = std::exchange(methods_, {});
    const auto classes = std::exchange(classes_, {});
    const auto weights = std::exchange(weights_, {});
}

void bind_watch(py::module_& m) {
    py::class_<Watch>(m, "Watch", py::custom_type_setup(collected),
                      "Notices changes of dictionaries and tensors; see csrc/python/watch.h.")
        .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&,
                      const py::list&, const py::object&, py::object, py::object>(),
             py::arg("dicts"), py::arg("entries"), py::arg("methods"), py::arg("objects"),
             py::arg("tensors"), py::arg("exchange"), py::arg("version_of"), py::arg("grad_of"))
        .def_readwrite("gradients_known", &Watch::gradients_known,
                       "Whether the caller compares the contents of what has gradients.")
        .def("unchanged", py::overload_cast<bool>(&Watch::unchanged), py::arg("contents"),
             "Whether everything is as it was, the contents of tensors included where asked for.");
    m.def("fingerprint", &fingerprint_of, py::arg("data"), py::arg("size"),
          "Bytes that tell whether memory holds what it held; see csrc/cpu/fingerprint.h.");
}

}  // namespace fastbert
