// Numbers that tell whether memory holds what it held, from all of its bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastbert {

// One for every 8 KiB.
using Fingerprint = std::array<std::uint64_t, 2>;

// The function is NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO 1999) over words of
// 64 bits, under keys that this process drew at random. Two different contents of the same size
// have equal fingerprints with a probability of at most 2^-64, whatever they are, as long as
// whoever writes them does not know the keys. In worker threads; reads as fast as memory gives.
std::vector<Fingerprint> fingerprint(const void* data, std::size_t bytes);

}  // namespace fastbert
