// Aligned memory that grows when asked to: to cache lines, and where it is large to huge pages.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "common/types.h"

namespace fastbert {

constexpr index_t kHugePage = index_t{2} << 20;

// For memory that was not written yet: what lies in whole huge pages is to be taken from them.
// The hardware's prefetch ends with a page, of which weights of 85 MB have 20 000 of 4 KiB, or 41
// huge ones. A kernel without them says no, and nothing is lost.
inline void ask_for_huge_pages(void* memory, index_t bytes) {
#if defined(MADV_HUGEPAGE)
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    const auto unit = static_cast<std::uintptr_t>(kHugePage);
    const std::uintptr_t begin = (address + unit - 1) / unit * unit;
    const std::uintptr_t end = (address + static_cast<std::uintptr_t>(bytes)) / unit * unit;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(memory);
    static_cast<void>(bytes);
#endif
}

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
        const bool huge = bytes >= kHugePage;
        const index_t unit = huge ? kHugePage : 64;
        const auto whole = static_cast<std::size_t>((bytes + unit - 1) / unit * unit);
        data_ = static_cast<char*>(std::aligned_alloc(static_cast<std::size_t>(unit), whole));
        if (data_ == nullptr) throw std::bad_alloc();
        if (huge) ask_for_huge_pages(data_, static_cast<index_t>(whole));
        size_ = bytes;
    }

    char* data() const { return data_; }
    index_t size() const { return size_; }

  private:
    char* data_ = nullptr;
    index_t size_ = 0;
};

}  // namespace fastbert
