// A number that tells whether memory still holds what it held, from a few of its bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastbert {

// Of memory up to this size, every byte counts; of larger memory, this many in four spans at equal
// distances, the first and the last ones included. So a training step, an average of weights or a
// copy shows (it writes nearly every element), a few single elements may not.
constexpr std::size_t kSampledBytes = 256;

// Not meant to withstand an adversary.
std::uint64_t sample_of(const void* data, std::size_t bytes);

// Reads a byte of every line that sample_of() will read, which brings them into the caches side by
// side.
void fetch_sample(const void* data, std::size_t bytes);

}  // namespace fastbert
