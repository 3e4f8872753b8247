// What holds in a child of fork(), which has a copy of all memory and of one thread only.
#pragma once

#include <mutex>

namespace fastbert {

// A mutex that no child finds locked, since a fork waits until it is free. For short stretches
// that call nothing which waits, least of all for Python's lock, which a forking thread holds.
std::mutex& fork_safe_mutex();

}  // namespace fastbert
