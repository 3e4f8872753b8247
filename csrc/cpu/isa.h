// Which instruction set the kernels use: what this CPU and its operating system offer, and what
// FASTBERT_CPU_ISA or a test asked for instead.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastbert {

// Each set includes the ones before it.
enum class Isa : int {
    scalar = 0,
    avx2 = 1,
    avx512 = 2,
    avx512_vnni = 3,
    avx512_bf16 = 4,
    amx = 5
};

const char* name_of(Isa isa);

// The set called `name`; std::invalid_argument listing the valid names otherwise.
Isa isa_from_name(const std::string& name);

// The fastest set that is compiled in and usable here (cpuid, OSXSAVE and XCR0 all agree): the last
// one, but not avx512_bf16 on Intel's processors, where it is slower than the one before.
// amx also needs the operating system's permission for this process, which is asked for at first.
Isa detected();

// Every set usable here, scalar first.
std::vector<Isa> usable_isas();

// What this machine lacks for `isa`, for people ("avx512f, avx512bw"); empty when it is usable.
std::string missing_for(Isa isa);

// The set in use: FASTBERT_CPU_ISA when set, else detected(). Throws std::invalid_argument when the
// variable holds an unknown name or a set this machine cannot run.
Isa active();

// Switches the set in use; same errors as active(). Not for use while kernels run.
void set_active(Isa isa);

}  // namespace fastbert
