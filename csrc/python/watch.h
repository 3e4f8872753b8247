// What a prepared encoder was made from, in a form that is quick to compare: dictionaries of Python
// objects and classes by identity; tensors by class, address, shape, strides, dtype and version.
// Comparing the few hundred of a model in Python would take longer than many a small kernel. What
// nobody wrote to since the last comparison (seal.h) is not compared again.
#pragma once

#include <vector>

#include "python/bind.h"
#include "python/dlpack.h"
#include "python/seal.h"

namespace fastbert {

// Reads an attribute that a class written in C has, as `_version` and `grad` of a tensor.
class Getter {
  public:
    explicit Getter(py::object descriptor);
    // object: of the class.
    py::object operator()(const py::object& object) const;

  private:
    py::object descriptor_;
    const PyGetSetDef* from_;
};

class Watch {
  public:
    // dicts: must keep exactly these keys with these very values, in this order. entries: (dict,
    // key) of which the same holds, an absent key included. methods: (class, name, value) of
    // attributes that must stay what they are. objects: must keep their classes. tensors: (tensor,
    // whether its contents were copied, whether it counts versions, whether it is a leaf).
    // exchange: `torch.Tensor.__dlpack_c_exchange_api__`; version_of, grad_of: the descriptors of
    // `_version` and `grad`. Python errors pass through.
    Watch(const py::list& dicts, const py::list& entries, const py::list& methods,
          const py::list& objects, const py::list& tensors, const py::object& exchange,
          py::object version_of, py::object grad_of);

    // Whether everything is the same object in the same memory; where asked for, also whether no
    // copied tensor has another version, or a gradient, with which a fused optimizer may have
    // written to it without one. Needs the GIL.
    bool unchanged(bool contents);

    // Gradients are no reason to call anything changed: the caller compares the contents itself.
    bool gradients_known = false;

    // For the garbage collector: hooks may close over the model that holds this.
    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    struct Entry {
        py::object key, value;  // value null: absent
    };
    struct Dict {
        py::object dict;
        std::size_t end;  // of its entries
    };
    struct Lookup {
        py::object dict;
        Entry entry;
    };
    struct Method {
        py::object type, name, value;
    };
    struct Class {
        py::object object, type;
    };
    struct Weight {
        py::object tensor, type;
        TensorLayout layout;
        bool copied, counted, leaf;
        std::size_t version;
    };

    bool same_dicts() const;
    bool same_lookups() const;
    bool same_methods() const;
    bool same_classes() const;
    bool unchanged(const Weight& weight, bool contents) const;

    std::vector<Dict> dicts_;
    std::vector<Entry> entries_;  // of the dictionaries, one behind the other
    DictSeal dict_seal_;
    std::vector<Lookup> lookups_;
    DictSeal lookup_seal_;  // of its own, since not all dictionaries can be sealed
    std::vector<Method> methods_;
    ClassSeal class_seal_;
    std::vector<Class> classes_;
    std::vector<Weight> weights_;
    const DlExchange* exchange_;
    Getter version_of_, grad_of_;
};

}  // namespace fastbert
