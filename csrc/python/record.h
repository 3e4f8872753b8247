// The argument structs of csrc as Python types: _C.ActArgs(x=..., out=..., rows=...). A constructor
// takes fields by name only, leaves those that are not named at the struct's own default, and
// raises TypeError for a required one that is missing, an unknown one, or a value that does not
// fit. Instances never change, so that a call may read them without the GIL.
//
// py::class_ looks up every keyword of a call in a dictionary. Here names are compared by identity,
// in the order in which fields are declared, so that a caller who keeps to it pays one comparison a
// field.
//
// To bind a struct: FASTBERT_RECORD(Struct) in namespace fastbert of the file that needs it, and
// Record<Struct>::add(m, doc, {fields}) when the module is made. Functions then take const Struct&.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/types.h"

namespace fastbert {

template <typename T>
struct RecordName;  // specialised by FASTBERT_RECORD

template <typename T, typename = void>
constexpr bool is_record = false;
template <typename T>
constexpr bool is_record<T, std::void_t<decltype(RecordName<T>::text)>> = true;

#define FASTBERT_RECORD(T)                                                                  \
    template <>                                                                             \
    struct RecordName<T> {                                                                  \
        static constexpr char text[] = #T;                                                  \
        static_assert(std::is_standard_layout_v<T> && std::is_trivially_destructible_v<T>); \
    };

struct Field {
    const char* name;
    std::size_t offset;
    // Writes a Python value to its place in the struct; false with a Python error set.
    bool (*assign)(void* at, PyObject* value);
    bool required;
    PyObject* interned = nullptr;
};

// What a type of records is made of, whatever the struct.
struct RecordLayout {
    const char* name = nullptr;
    PyTypeObject* type = nullptr;
    std::vector<Field> fields;
    std::uint64_t required = 0;  // a bit for each field

    void make(pybind11::module_& m, const char* doc, std::vector<Field> given, std::size_t size,
              vectorcallfunc construct);
    // Sets the fields called names[i] to values[i]; false with a Python error set.
    bool fill(void* record, PyObject* const* values, PyObject* names) const;
};

template <typename T>
struct Record {
    struct Object {
        PyObject_HEAD T value;
    };
    inline static RecordLayout layout;

    static void add(pybind11::module_& m, const char* doc, std::vector<Field> fields) {
        layout.name = RecordName<T>::text;
        layout.make(m, doc, std::move(fields), sizeof(Object), construct);
    }

    // The struct in a Python object, null for an object of another type.
    static const T* of(PyObject* object) {
        return Py_TYPE(object) == layout.type ? &reinterpret_cast<Object*>(object)->value : nullptr;
    }

  private:
    static PyObject* construct(PyObject*, PyObject* const* values, std::size_t count,
                               PyObject* names) {
        if (PyVectorcall_NARGS(count) != 0) {
            PyErr_Format(PyExc_TypeError, "%s takes its fields by name.", layout.name);
            return nullptr;
        }
        PyObject* const self = layout.type->tp_alloc(layout.type, 0);
        if (self == nullptr) return nullptr;
        T* const value = new (&reinterpret_cast<Object*>(self)->value) T{};
        if (layout.fill(value, values, names)) return self;
        Py_DECREF(self);
        return nullptr;
    }
};

// Writes a Python value to a field of type V.
template <typename V>
bool assign_field(void* at, PyObject* value) {
    V& field = *static_cast<V*>(at);
    if constexpr (is_record<V>) {
        const V* const given = Record<V>::of(value);
        if (given != nullptr) {
            field = *given;
        } else if (value != Py_None) {  // None leaves the default
            PyErr_Format(PyExc_TypeError, "it must be a %s or None, not %s", RecordName<V>::text,
                         Py_TYPE(value)->tp_name);
            return false;
        }
        return true;
    } else if constexpr (std::is_pointer_v<V>) {
        field = reinterpret_cast<V>(PyLong_AsSize_t(value));
    } else if constexpr (std::is_same_v<V, bool>) {
        if (!PyBool_Check(value)) {
            PyErr_Format(PyExc_TypeError, "it must be True or False, not %s",
                         Py_TYPE(value)->tp_name);
            return false;
        }
        field = value == Py_True;
    } else if constexpr (std::is_same_v<V, float>) {
        field = static_cast<float>(PyFloat_AsDouble(value));
    } else if constexpr (std::is_enum_v<V>) {
        const long code = PyLong_AsLong(value);
        field = static_cast<V>(static_cast<int>(code));
        if (code < INT32_MIN || code > INT32_MAX) field = static_cast<V>(-1);  // refused later
    } else {
        static_assert(std::is_same_v<V, index_t>);
        field = PyLong_AsLongLong(value);
    }
    return PyErr_Occurred() == nullptr;
}

// A field called `name`, which may be a member of a member.
#define FASTBERT_FIELD(T, name, member, required)                                                  \
    ::fastbert::Field {                                                                            \
        name, offsetof(T, member), &::fastbert::assign_field<decltype(std::declval<T&>().member)>, \
            required                                                                               \
    }

}  // namespace fastbert

namespace pybind11::detail {

// Records are lent to functions: const T&, or const T* where None is allowed.
template <typename T>
class type_caster<T, std::enable_if_t<fastbert::is_record<T>>> {
  public:
    static constexpr auto name = const_name(fastbert::RecordName<T>::text);
    template <typename U>
    using cast_op_type =
        std::conditional_t<std::is_pointer_v<std::remove_reference_t<U>>, const T*, const T&>;

    bool load(handle source, bool) {
        value_ = fastbert::Record<T>::of(source.ptr());
        return value_ != nullptr || source.is_none();
    }
    operator const T*() { return value_; }
    operator const T&() {
        if (value_ == nullptr) throw reference_cast_error();
        return *value_;
    }

  private:
    const T* value_ = nullptr;
};

}  // namespace pybind11::detail
