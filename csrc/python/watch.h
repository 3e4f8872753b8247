// What a prepared encoder was made from, in a form that is quick to compare: dictionaries of Python
// objects by identity, tensors by address, version and a sample of their bytes. Comparing the few
// hundred of a model in Python would take longer than many a small kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "python/bind.h"

namespace fastbert {

class Watch {
  public:
    // dicts: must keep exactly these keys with these very values. entries: (dict, key) of which the
    // same holds, be it that the key is absent. tensors: (tensor, whether it counts versions,
    // bytes of its memory that may be read, 0 on another device, and as hints the addresses of its
    // C++ object and of its storage's). address_of: the method that gives
    // a tensor's address; version_of: the descriptor of its version. Python errors pass through.
    Watch(const py::list& dicts, const py::list& entries, const py::list& tensors,
          py::object address_of, py::object version_of);

    // Whether nothing has changed; where asked for, nothing written to the tensors either, by their
    // versions and samples (fastbert/runtime/versions.py). Needs the GIL.
    bool unchanged(bool contents) const;

    // For the garbage collector: hooks may close over the model that holds this.
    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    struct Size {
        py::object dict;
        Py_ssize_t size;
    };
    struct Entry {
        py::object dict, key, value;  // value null: absent
    };
    struct Weight {
        py::object tensor;
        bool counted;
        std::size_t bytes, address, version;
        std::uint64_t sample;
        const char *parts, *storage;  // never read through: prefetched
    };

    void add(const py::object& dict, const py::object& key);
    std::size_t address_of(const Weight& weight) const;
    std::size_t version_of(const Weight& weight) const;
    // Brings what unchanged() reads into the caches: after a pass through a large model it is in
    // none of them, and one look after the other would wait for memory each time.
    void fetch() const;

    std::vector<Size> sizes_;
    std::vector<Entry> entries_;
    std::vector<Weight> weights_;
    py::object address_of_, version_of_;
};

}  // namespace fastbert
