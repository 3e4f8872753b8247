#include "cpu/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "cpu/threads.h"

namespace fastbert {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::size_t kBlock = 8192;  // its keys stay in the first-level cache
constexpr std::size_t kPair = 16;     // bytes that one multiplication takes
constexpr std::size_t kAhead = 2048;  // bytes; the multiplications hide no memory by themselves
constexpr std::size_t kBlocksOfTask = 64;  // 512 KiB: some 50 us
using Keys = std::array<std::uint64_t, kBlock / 8>;

Keys drawn() {
    std::random_device source;
    Keys keys;
    for (std::uint64_t& key : keys) key = std::uint64_t(source()) << 32 | source();
    return keys;
}

Wide product(const char* pair, const std::uint64_t* key) {
    std::uint64_t words[2];
    std::memcpy(words, pair, kPair);
    return Wide(words[0] + key[0]) * (words[1] + key[1]);
}

// bytes: a multiple of 32
Wide sum(const char* p, std::size_t bytes, const std::uint64_t* key) {
    Wide even = 0, odd = 0;  // side by side: one chain of additions would be slower than memory
    for (std::size_t at = 0; at < bytes; at += 2 * kPair) {
        __builtin_prefetch(p + at + kAhead);  // a hint, which may point beyond the end
        even += product(p + at, key + at / 8);
        odd += product(p + at + kPair, key + (at + kPair) / 8);
    }
    return even + odd;
}

Fingerprint of_block(const char* p, std::size_t bytes, const Keys& keys) {
    const std::size_t whole = bytes / (2 * kPair) * (2 * kPair);
    char rest[2 * kPair] = {};
    Wide total = sum(p, whole, keys.data());
    if (whole < bytes) {
        std::memcpy(rest, p + whole, bytes - whole);
        total += sum(rest, sizeof rest, keys.data() + whole / 8);
    }
    return {std::uint64_t(total), std::uint64_t(total >> 64)};
}

}  // namespace

std::vector<Fingerprint> fingerprint(const void* data, std::size_t bytes) {
    static const Keys keys = drawn();
    const std::size_t blocks = (bytes + kBlock - 1) / kBlock;
    std::vector<Fingerprint> out(blocks);
    const char* const p = static_cast<const char*>(data);
    parallel_for(index_t((blocks + kBlocksOfTask - 1) / kBlocksOfTask), [&](index_t task, int) {
        const std::size_t end = std::min(blocks, (std::size_t(task) + 1) * kBlocksOfTask);
        for (std::size_t i = std::size_t(task) * kBlocksOfTask; i < end; ++i) {
            out[i] = of_block(p + i * kBlock, std::min(kBlock, bytes - i * kBlock), keys);
        }
    });
    return out;
}

}  // namespace fastbert
