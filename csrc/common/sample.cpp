#include "common/sample.h"

#include <algorithm>
#include <cstring>

namespace fastbert {
namespace {

constexpr std::size_t kSpans = 4;
constexpr std::size_t kSpan = kSampledBytes / kSpans;  // a cache line

std::uint64_t mixed(std::uint64_t state, std::uint64_t word) {
    state = (state ^ word) * 0x9e3779b97f4a7c15u;  // odd: no word is lost
    return state ^ state >> 32;
}

std::uint64_t word_at(const char* p) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    return word;
}

// Where the spans of larger memory begin.
std::size_t span_begin(std::size_t bytes, std::size_t span) {
    return (bytes - kSpan) * span / (kSpans - 1);
}

}  // namespace

std::uint64_t sample_of(const void* data, std::size_t bytes) {
    const char* const p = static_cast<const char*>(data);
    std::uint64_t state = bytes;
    if (bytes <= kSampledBytes) {
        for (std::size_t at = 0; at < bytes; at += 8) {
            char last[8] = {};
            std::memcpy(last, p + at, std::min<std::size_t>(8, bytes - at));
            state = mixed(state, word_at(last));
        }
        return state;
    }
    // Side by side: a chain of 32 multiplications would take longer than the memory.
    std::uint64_t of_span[kSpans] = {};
    for (std::size_t at = 0; at < kSpan; at += 8) {
        for (std::size_t i = 0; i < kSpans; ++i) {
            of_span[i] = mixed(of_span[i], word_at(p + span_begin(bytes, i) + at));
        }
    }
    for (const std::uint64_t one : of_span) state = mixed(state, one);
    return state;
}

void fetch_sample(const void* data, std::size_t bytes) {
    if (bytes <= kSampledBytes) return;
    const char* const p = static_cast<const char*>(data);
    // A prefetch would be dropped wherever the page is not in the TLB, as after a pass few are.
    for (std::size_t i = 0; i < kSpans; ++i) {
        (void)*static_cast<const volatile char*>(p + span_begin(bytes, i));
    }
}

}  // namespace fastbert
