// Says at a glance that nobody wrote to dictionaries or classes since they were looked at. CPython
// tells it in three ways, all of its public headers: up to 3.11 every dictionary has a number that
// changes with each write (PEP 509), from 3.12 on a watcher hears of the writes to the dictionaries
// it was given, and every class has a tag that is gone once it, or a base of it, was written to.
// A broken seal says nothing: whoever finds one looks at the contents.
#pragma once

#include <cstdint>
#include <vector>

#include "python/bind.h"

namespace fastbert {

// Both classes: the caller keeps alive what is sealed. All functions need the GIL.
class DictSeal {
  public:
    // Broken until it is closed.
    void add(PyObject* dict);
    // To be called once the contents were found to be the expected ones.
    void close();
    bool holds() const;
    void prefetch() const;
    void clear();

  private:
    std::vector<PyObject*> dicts_;
#if PY_VERSION_HEX < 0x030C0000
    std::vector<std::uint64_t> versions_;
#endif
    std::uint64_t writes_ = 0;
    bool closed_ = false;
};

class ClassSeal {
  public:
    void add(PyTypeObject* type);
    // Likewise. Looking attributes up gives a class its tag.
    void close();
    bool holds() const;
    void clear();

  private:
    struct Tagged {
        PyTypeObject* type;
        unsigned tag;
    };
    std::vector<Tagged> types_;
};

}  // namespace fastbert
