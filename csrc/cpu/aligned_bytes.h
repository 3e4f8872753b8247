// 64-byte aligned memory that grows when asked to.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

#include "common/types.h"

namespace fastbert {

class AlignedBytes {
  public:
    AlignedBytes() = default;
    ~AlignedBytes() { std::free(data_); }
    AlignedBytes(AlignedBytes&& other) noexcept { *this = std::move(other); }
    AlignedBytes& operator=(AlignedBytes&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }

    // At least `bytes` bytes; the contents are lost when it has to grow. Throws std::bad_alloc.
    void reserve(index_t bytes) {
        if (bytes <= size_) return;
        std::free(data_);
        size_ = 0;
        data_ = static_cast<char*>(
            std::aligned_alloc(64, static_cast<std::size_t>(bytes + 63) / 64 * 64));
        if (data_ == nullptr) throw std::bad_alloc();
        size_ = bytes;
    }

    char* data() const { return data_; }
    index_t size() const { return size_; }

  private:
    char* data_ = nullptr;
    index_t size_ = 0;
};

}  // namespace fastbert
