#include "cpu/aligned_bytes.h"

#include <cstdint>
#include <cstring>

#include "harness.h"

using namespace fastbert;

namespace {

constexpr index_t kMiB = index_t{1} << 20;

std::uintptr_t address(const AlignedBytes& memory) {
    return reinterpret_cast<std::uintptr_t>(memory.data());
}

}  // namespace

// On other boundaries the first and the last part of large memory would lie on small pages.
TEST(aligned_bytes_start_on_lines_and_large_ones_on_huge_pages) {
    for (index_t bytes : {index_t{1}, index_t{65}, 2 * kMiB - 1}) {
        AlignedBytes memory;
        memory.reserve(bytes);
        CHECK(address(memory) % 64 == 0);
        std::memset(memory.data(), 1, static_cast<std::size_t>(bytes));
    }
    for (index_t bytes : {2 * kMiB, 3 * kMiB + 1}) {
        AlignedBytes memory;
        memory.reserve(bytes);
        CHECK(address(memory) % static_cast<std::uintptr_t>(2 * kMiB) == 0);
        std::memset(memory.data(), 1, static_cast<std::size_t>(bytes));
    }
}

TEST(aligned_bytes_grow_and_never_shrink) {
    AlignedBytes memory;
    CHECK(memory.size() == 0);
    memory.reserve(3 * kMiB);
    CHECK(memory.size() == 3 * kMiB);
    const char* const before = memory.data();
    memory.reserve(100);
    CHECK(memory.size() == 3 * kMiB);
    CHECK(memory.data() == before);
    memory.reserve(5 * kMiB);
    CHECK(memory.size() == 5 * kMiB);
    AlignedBytes taken = std::move(memory);
    CHECK(taken.size() == 5 * kMiB);
    CHECK(memory.data() == nullptr);
}
