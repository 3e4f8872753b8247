#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "isa_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastbert {
namespace {

// One bit per CPU feature named in the CMake table; a name in the table that is missing here does
// not compile, and neither does one that detect_features() never looks for (feature_bits is its
// only source).
namespace feature {
using bits = std::uint32_t;
// clang-format off
#define FASTBERT_FEATURES(FEATURE)                                                           \
    FEATURE(sse3) FEATURE(ssse3) FEATURE(sse4_1) FEATURE(sse4_2) FEATURE(popcnt)             \
    FEATURE(avx) FEATURE(f16c) FEATURE(fma) FEATURE(avx2) FEATURE(bmi) FEATURE(bmi2)         \
    FEATURE(avx512f) FEATURE(avx512cd) FEATURE(avx512bw) FEATURE(avx512dq) FEATURE(avx512vl) \
    FEATURE(avx512vnni) FEATURE(avx512bf16)                                                  \
    FEATURE(amx_tile) FEATURE(amx_int8) FEATURE(amx_bf16)
// clang-format on

enum index : int {
#define FEATURE(name) name##_index,
    FASTBERT_FEATURES(FEATURE)
#undef FEATURE
        count
};
#define FEATURE(name) constexpr bits name = bits{1} << name##_index;
FASTBERT_FEATURES(FEATURE)
#undef FEATURE

constexpr const char* names[] = {
#define FEATURE(name) #name,
    FASTBERT_FEATURES(FEATURE)
#undef FEATURE
};
}  // namespace feature

struct Row {
    Isa isa;
    feature::bits needs;
};

constexpr Row compiled[] = {
#define ROW(name, mask) {Isa::name, mask},
    FASTBERT_COMPILED_ISAS(ROW)
#undef ROW
};

constexpr Isa all_isas[] = {Isa::scalar,      Isa::avx2,        Isa::avx512,
                            Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

const Row* row_of(Isa isa) {
    for (const Row& row : compiled) {
        if (row.isa == isa) return &row;
    }
    return nullptr;
}

#if defined(__x86_64__)
bool made_by_intel() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx &&
           ecx == signature_INTEL_ecx && edx == signature_INTEL_edx;
}

std::uint64_t read_xcr0() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

// XCR0 bits 17 and 18: the tiles' configuration and data. Linux saves the latter for processes that
// asked for it alone, and refuses those whose signal stacks have no room for them.
bool may_use_tiles(std::uint64_t xcr0) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return (xcr0 & 0x60000) == 0x60000 && syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
    (void)xcr0;
    return false;
#endif
}

feature::bits detect_features() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    feature::bits found = 0;
    const auto note = [&found](unsigned reg, int bit, feature::bits name) {
        if ((reg >> bit) & 1u) found |= name;
    };
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
    note(ecx, 0, feature::sse3);
    note(ecx, 9, feature::ssse3);
    note(ecx, 19, feature::sse4_1);
    note(ecx, 20, feature::sse4_2);
    note(ecx, 23, feature::popcnt);

    // A CPU may know AVX while the operating system does not save its registers: then using it
    // corrupts other processes or faults. XCR0 bits: 1 SSE, 2 AVX; 5, 6, 7 the AVX-512 state.
    const bool osxsave = (ecx >> 27) & 1u;
    const std::uint64_t xcr0 = osxsave ? read_xcr0() : 0;
    const bool saves_ymm = (xcr0 & 0x6) == 0x6;
    const bool saves_zmm = saves_ymm && (xcr0 & 0xe0) == 0xe0;
    if (saves_ymm) {
        note(ecx, 28, feature::avx);
        note(ecx, 29, feature::f16c);
        note(ecx, 12, feature::fma);
    }
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        const unsigned max_subleaf = eax;
        note(ebx, 3, feature::bmi);
        note(ebx, 8, feature::bmi2);
        if (saves_ymm) note(ebx, 5, feature::avx2);
        if (may_use_tiles(xcr0)) {
            note(edx, 24, feature::amx_tile);
            note(edx, 25, feature::amx_int8);
            note(edx, 22, feature::amx_bf16);
        }
        if (saves_zmm) {
            note(ebx, 16, feature::avx512f);
            note(ebx, 17, feature::avx512dq);
            note(ebx, 28, feature::avx512cd);
            note(ebx, 30, feature::avx512bw);
            note(ebx, 31, feature::avx512vl);
            note(ecx, 11, feature::avx512vnni);
            if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
                note(eax, 5, feature::avx512bf16);
            }
        }
    }
    return found;
}
#else
bool made_by_intel() { return false; }
feature::bits detect_features() { return 0; }
#endif

// Intel's vdpbf16ps is microcode, and slower than widening to float32. On a Xeon of family 6, model
// 207, two cores, BERT-base: bfloat16 8 x 128 takes 3.6 s with it and 1.7 s without, int8 1 x 128,
// whose attention is bfloat16, 134 and 64 ms.
bool is_fast(Isa isa) { return isa != Isa::avx512_bf16 || !made_by_intel(); }

feature::bits features() {
    static const feature::bits found = detect_features();
    return found;
}

std::string valid_names() {
    std::string names;
    for (Isa isa : all_isas) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
    return names;
}

std::string compiled_names() {
    std::string names;
    for (const Row& row : compiled) {
        names += (names.empty() ? "" : ", ") + std::string(name_of(row.isa));
    }
    return names;
}

void require_usable(Isa isa, const char* asked_by) {
    const std::string missing = missing_for(isa);
    if (missing.empty()) return;
    const std::string lacking = row_of(isa) == nullptr ? "this build" : "this machine";
    throw std::invalid_argument(std::string(asked_by) + " asks for the instruction set " +
                                name_of(isa) + ", but " + lacking + " lacks " + missing +
                                ". The best it can run is " + name_of(detected()) + ".");
}

// A build of some sets only (`make native ISA=...`) may hold none that this machine can run.
Isa best_usable() {
    const Isa best = detected();
    if (missing_for(best).empty()) return best;
    throw std::invalid_argument("this build holds kernels for " + compiled_names() +
                                " only, and this machine lacks " + missing_for(compiled[0].isa) +
                                "; `make native` without ISA= compiles every set");
}

Isa from_environment() {
    const char* asked = std::getenv("FASTBERT_CPU_ISA");
    if (asked == nullptr || *asked == '\0') return best_usable();
    Isa isa = Isa::scalar;
    try {
        isa = isa_from_name(asked);
    } catch (const std::invalid_argument&) {
        throw std::invalid_argument("FASTBERT_CPU_ISA is \"" + std::string(asked) +
                                    "\"; it must be one of " + valid_names() +
                                    ", or unset to choose the best one.");
    }
    require_usable(isa, "FASTBERT_CPU_ISA");
    return isa;
}

constexpr int undecided = -1;
std::atomic<int> active_isa{undecided};

}  // namespace

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return "scalar";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        case Isa::avx512_vnni:
            return "avx512_vnni";
        case Isa::avx512_bf16:
            return "avx512_bf16";
        case Isa::amx:
            return "amx";
    }
    return "unknown";
}

Isa isa_from_name(const std::string& name) {
    for (Isa isa : all_isas) {
        if (name == name_of(isa)) return isa;
    }
    throw std::invalid_argument("there is no instruction set \"" + name + "\"; it must be one of " +
                                valid_names() + ".");
}

Isa detected() {
    Isa best = Isa::scalar;
    bool found = false;
    for (const Row& row : compiled) {
        if ((features() & row.needs) != row.needs) continue;
        if (found && !is_fast(row.isa)) continue;
        best = row.isa;
        found = true;
    }
    return best;
}

std::vector<Isa> usable_isas() {
    std::vector<Isa> usable;
    for (const Row& row : compiled) {
        if (missing_for(row.isa).empty()) usable.push_back(row.isa);
    }
    return usable;
}

std::string missing_for(Isa isa) {
    const Row* row = row_of(isa);
    if (row == nullptr) return "its kernels (it holds those for " + compiled_names() + ")";
    std::string missing;
    for (int i = 0; i < feature::count; ++i) {
        const feature::bits bit = feature::bits{1} << i;
        if ((row->needs & bit) && !(features() & bit)) {
            missing += (missing.empty() ? "" : ", ") + std::string(feature::names[i]);
        }
    }
    return missing;
}

Isa active() {
    int current = active_isa.load(std::memory_order_relaxed);
    if (current == undecided) {
        current = static_cast<int>(from_environment());
        active_isa.store(current, std::memory_order_relaxed);
    }
    return static_cast<Isa>(current);
}

void set_active(Isa isa) {
    require_usable(isa, "set_isa");
    active_isa.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace fastbert
