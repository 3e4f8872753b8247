#include "python/dlpack.h"

#include <algorithm>
#include <stdexcept>

namespace fastbert {
namespace {

constexpr std::ptrdiff_t kLine = 64;

std::uint64_t kind_of(const DlTensor& t) {
    return std::uint64_t(t.code) << 56 | std::uint64_t(t.bits) << 48 |
           std::uint64_t(std::uint16_t(t.device_type)) << 32 | std::uint32_t(t.device_id);
}

const void* address_of(const DlTensor& t) {
    return static_cast<const char*>(t.data) + t.byte_offset;
}

// False where DLPack has no words for the tensor.
bool read(const py::object& tensor, const DlExchange& exchange, DlTensor& out) {
    if (exchange.tensor_from_object(tensor.ptr(), &out) == 0) return true;
    // The standard asks for BufferError; torch 2.13 raises RuntimeError.
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        throw py::error_already_set();
    }
    PyErr_Clear();
    return false;
}

}  // namespace

TensorLayout::TensorLayout(const py::object& tensor, const DlExchange& exchange) {
    DlTensor t;
    if (!read(tensor, exchange, t)) return;
    if (t.ndim > kDimensions) throw std::invalid_argument("a weight has more than 4 dimensions");
    data_ = address_of(t);
    kind_ = kind_of(t);
    ndim_ = t.ndim;
    std::copy_n(t.shape, t.ndim, shape_.begin());
    std::copy_n(t.strides, t.ndim, strides_.begin());
    const char* const shape = reinterpret_cast<const char*>(t.shape);
    hints_ = {shape - kLine, shape, shape + kLine};
    // A tensor begins with a table of functions and its counts, before the pointers to storage,
    // gradient and version.
    const auto address = py::cast<std::uintptr_t>(py::getattr(tensor, "_cdata", py::int_(0)));
    if (address == 0) return;
    std::copy_n(reinterpret_cast<const char* const*>(address) + 2, kPointers, hints_.begin() + 3);
}

bool TensorLayout::holds(const py::object& tensor, const DlExchange& exchange) const {
    DlTensor t;
    if (!read(tensor, exchange, t)) return ndim_ < 0;
    if (address_of(t) != data_ || t.ndim != ndim_ || kind_of(t) != kind_) return false;
    // Of one or two dimensions mostly, for which std::equal would call memcmp.
    std::int64_t different = 0;
    for (std::int32_t i = 0; i < t.ndim; ++i) {
        different |= (t.shape[i] ^ shape_[i]) | (t.strides[i] ^ strides_[i]);
    }
    return different == 0;
}

void TensorLayout::prefetch() const {
    for (const char* const hint : hints_) __builtin_prefetch(hint);
}

}  // namespace fastbert
