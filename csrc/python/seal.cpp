#include "python/seal.h"

#include <algorithm>

namespace fastbert {
namespace {

// 0: none.
unsigned tag_of(const PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030C0000
    if (!(type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
    return type->tp_version_tag;
}

#if PY_VERSION_HEX >= 0x030C0000
// Of all dictionaries that any seal was closed over.
std::uint64_t writes = 1;

int count_write(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) {
    ++writes;
    return 0;
}

// Negative where others took all watchers of the process.
int watcher() {
    static const int id = [] {
        const int added = PyDict_AddWatcher(&count_write);
        if (added < 0) PyErr_Clear();
        return added;
    }();
    return id;
}

// From 3.13 on, attributes that lie in their object are stored there without a word to the watchers
// of its dictionary.
bool written_unheard(PyObject* dict) {
#if PY_VERSION_HEX >= 0x030D0000
    return reinterpret_cast<const PyDictObject*>(dict)->ma_values != nullptr;
#else
    return dict == nullptr;
#endif
}
#endif

}  // namespace

void DictSeal::add(PyObject* dict) {
    // Once each, in the order of their addresses.
    const auto place = std::lower_bound(dicts_.begin(), dicts_.end(), dict);
    if (place == dicts_.end() || *place != dict) dicts_.insert(place, dict);
    closed_ = false;
}

void DictSeal::clear() {
    dicts_.clear();
    closed_ = false;
}

#if PY_VERSION_HEX < 0x030C0000

namespace {

std::uint64_t version_of(PyObject* dict) {
    return reinterpret_cast<const PyDictObject*>(dict)->ma_version_tag;
}

}  // namespace

void DictSeal::close() {
    versions_.resize(dicts_.size());
    std::transform(dicts_.begin(), dicts_.end(), versions_.begin(), &version_of);
    closed_ = true;
}

bool DictSeal::holds() const {
    if (!closed_) return false;
    // Without a branch for each, so that the processor reads ahead.
    std::uint64_t different = 0;
    for (std::size_t i = 0; i < dicts_.size(); ++i)
        different |= versions_[i] ^ version_of(dicts_[i]);
    return different == 0;
}

void DictSeal::prefetch() const {
    for (PyObject* const dict : dicts_) {
        __builtin_prefetch(&reinterpret_cast<const PyDictObject*>(dict)->ma_version_tag);
    }
}

#else

void DictSeal::close() {
    writes_ = writes;
    if (closed_) return;
    closed_ = watcher() >= 0 && std::none_of(dicts_.begin(), dicts_.end(), &written_unheard);
    for (PyObject* const dict : dicts_) {
        if (closed_ && PyDict_Watch(watcher(), dict) < 0) {
            PyErr_Clear();
            closed_ = false;
        }
    }
}

bool DictSeal::holds() const { return closed_ && writes_ == writes; }

void DictSeal::prefetch() const {}

#endif

void ClassSeal::add(PyTypeObject* type) {
    const auto same = [type](const Tagged& t) { return t.type == type; };
    if (std::none_of(types_.begin(), types_.end(), same)) types_.push_back({type, 0});
}

void ClassSeal::close() {
    for (Tagged& t : types_) t.tag = tag_of(t.type);
}

bool ClassSeal::holds() const {
    return std::all_of(types_.begin(), types_.end(),
                       [](const Tagged& t) { return t.tag != 0 && t.tag == tag_of(t.type); });
}

void ClassSeal::clear() { types_.clear(); }

}  // namespace fastbert
