// How a thread's floating-point unit rounds and treats tiny numbers.
#pragma once

#include <cstdint>

namespace fastbert {

#if defined(__x86_64__)
constexpr std::uint32_t kFloatFlags = 0x3f;  // what happened so far, no setting
inline std::uint64_t float_state() { return __builtin_ia32_stmxcsr() & ~kFloatFlags; }
inline void set_float_state(std::uint64_t state) {
    if (float_state() != state) __builtin_ia32_ldmxcsr(static_cast<std::uint32_t>(state));
}
#elif defined(__aarch64__)
inline std::uint64_t float_state() {
    std::uint64_t state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    return state;
}
inline void set_float_state(std::uint64_t state) {
    if (float_state() != state) __asm__ volatile("msr fpcr, %0" : : "r"(state));
}
#else
inline std::uint64_t float_state() { return 0; }
inline void set_float_state(std::uint64_t) {}
#endif

}  // namespace fastbert
