// Compiled once for each instruction set and op, after the vec header of the set, with the names
// FASTBERT_ISA and FASTBERT_OP and the op's file as FASTBERT_OP_FILE (cmake/isa.cmake). Everything
// but the kernels that are exported here lives in an anonymous namespace: a symbol shared with
// other files could be merged by the linker with its flagged copy, and then crash a CPU that lacks
// the instructions (cmake/check_isolation.cmake checks with nm).
#include FASTBERT_OP_FILE

#define FASTBERT_JOINED(op, isa) op##_kernels_##isa
#define FASTBERT_JOIN(op, isa) FASTBERT_JOINED(op, isa)
#define FASTBERT_EXPORTED FASTBERT_JOIN(FASTBERT_OP, FASTBERT_ISA)
#define FASTBERT_SUFFIXED(op) op##_kernels
#define FASTBERT_SUFFIX(op) FASTBERT_SUFFIXED(op)
#define FASTBERT_KERNELS FASTBERT_SUFFIX(FASTBERT_OP)

namespace fastbert {

extern decltype(FASTBERT_KERNELS) FASTBERT_EXPORTED;

// constexpr, hence filled at compile time: no code of this file may run while the library loads.
constexpr decltype(FASTBERT_KERNELS) FASTBERT_EXPORTED = FASTBERT_KERNELS;

}  // namespace fastbert
