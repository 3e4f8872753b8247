// Where a tensor's elements lie, by the C functions of the DLPack standard that torch.Tensor offers
// in `__dlpack_c_exchange_api__`: one call without an allocation. torch 2.13 takes 80 ns for it.
#pragma once

#include <array>
#include <cstdint>

#include "python/bind.h"

namespace fastbert {

// DLTensor and DLPackExchangeAPI of DLPack, version 1, as the standard lays them out.
struct DlTensor {
    void* data;
    std::int32_t device_type, device_id, ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    const std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};

struct DlExchange {
    std::uint32_t major, minor;
    const DlExchange* previous;
    void *allocate, *managed_from_object, *managed_to_object;
    int (*tensor_from_object)(void* object, DlTensor* out);
};

class TensorLayout {
  public:
    TensorLayout(const py::object& tensor, const DlExchange& exchange);
    // Whether this is the layout of a tensor still.
    bool holds(const py::object& tensor, const DlExchange& exchange) const;
    // Asks for the memory that holds(), and the getters of a tensor, will read: the lines around
    // the shape, where torch keeps the rest of a tensor's description, and what that points to.
    // Hints, which may point anywhere.
    void prefetch() const;

  private:
    static constexpr int kDimensions = 4;
    static constexpr int kPointers = 4;
    using Extents = std::array<std::int64_t, kDimensions>;

    const void* data_ = nullptr;
    std::uint64_t kind_ = 0;  // dtype and device
    std::int32_t ndim_ = -1;  // -1: DLPack does not describe it, as on the device "meta"
    Extents shape_ = {}, strides_ = {};
    std::array<const char*, 3 + kPointers> hints_ = {};
};

}  // namespace fastbert
