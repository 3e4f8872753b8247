#include "python/record.h"

#include <string>

namespace fastbert {
namespace {

void deallocate(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

// Prefixes the current Python error with the field it is about.
void name_error(const char* record, const char* field) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_Format(type, "%s.%s: %S", record, field, value == nullptr ? Py_None : value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

// The position of a field, from `guess` on and round; the number of fields where there is none.
std::size_t find(const std::vector<Field>& fields, PyObject* name, std::size_t guess) {
    const std::size_t count = fields.size();
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = guess + i < count ? guess + i : guess + i - count;
        if (fields[at].interned == name) return at;
    }
    for (std::size_t at = 0; at < count; ++at) {  // a name that was made at run time
        if (PyUnicode_Compare(fields[at].interned, name) == 0) return at;
    }
    return count;
}

}  // namespace

void RecordLayout::make(pybind11::module_& m, const char* doc, std::vector<Field> given,
                        std::size_t size, vectorcallfunc construct) {
    fields = std::move(given);
    if (fields.size() > 64) throw std::logic_error("a record has at most 64 fields");
    pybind11::tuple names(fields.size());
    for (std::size_t i = 0; i < fields.size(); ++i) {
        fields[i].interned = PyUnicode_InternFromString(fields[i].name);
        if (fields[i].interned == nullptr) throw pybind11::error_already_set();
        names[i] = pybind11::reinterpret_borrow<pybind11::object>(fields[i].interned);
        if (fields[i].required) required |= std::uint64_t{1} << i;
    }
    PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&deallocate)},
                           {Py_tp_doc, const_cast<char*>(doc)},
                           {0, nullptr}};
    const std::string full = pybind11::cast<std::string>(m.attr("__name__")) + "." + name;
    PyType_Spec spec{full.c_str(), static_cast<int>(size), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    auto made = pybind11::reinterpret_steal<pybind11::object>(PyType_FromSpec(&spec));
    if (!made) throw pybind11::error_already_set();
    type = reinterpret_cast<PyTypeObject*>(made.ptr());
    type->tp_vectorcall = construct;  // what calling the type does
    made.attr("_fields") = names;
    m.attr(name) = made;
}

bool RecordLayout::fill(void* record, PyObject* const* values, PyObject* names) const {
    std::uint64_t given = 0;
    std::size_t next = 0;
    const Py_ssize_t count = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const wanted = PyTuple_GET_ITEM(names, i);
        const std::size_t at = find(fields, wanted, next);
        if (at == fields.size()) {
            PyErr_Format(PyExc_TypeError, "%s has no field %R.", name, wanted);
            return false;
        }
        if (fields[at].required && values[i] == Py_None) {
            PyErr_Format(PyExc_TypeError, "%s.%s: it must not be None.", name, fields[at].name);
            return false;
        }
        if (!fields[at].assign(static_cast<char*>(record) + fields[at].offset, values[i])) {
            name_error(name, fields[at].name);
            return false;
        }
        given |= std::uint64_t{1} << at;
        next = at + 1;
    }
    const std::uint64_t missing = required & ~given;
    if (missing == 0) return true;
    std::size_t first = 0;
    while ((missing >> first & 1) == 0) ++first;
    PyErr_Format(PyExc_TypeError, "%s needs its field %s.", name, fields[first].name);
    return false;
}

}  // namespace fastbert
