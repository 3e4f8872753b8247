#include "cpu/kernels.h"

#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "isa_table.h"

namespace fastbert {

#define ROW(name, mask) extern const KernelTable kernels_##name;
FASTBERT_COMPILED_ISAS(ROW)
#undef ROW

const KernelTable& kernels(Isa isa) {
    switch (isa) {
#define ROW(name, mask) \
    case Isa::name:     \
        return kernels_##name;
        FASTBERT_COMPILED_ISAS(ROW)
#undef ROW
        default:
            break;
    }
    throw std::invalid_argument(std::string("this build holds no kernels for ") + name_of(isa));
}

const KernelTable& active_kernels() { return kernels(active()); }

}  // namespace fastbert
