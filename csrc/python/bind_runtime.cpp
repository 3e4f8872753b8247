#include <cstdint>
#include <string>

#include "cpu/aligned_bytes.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/openmp.h"
#include "cpu/threads.h"
#include "isa_table.h"
#include "python/bind.h"

namespace fastbert {
namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = FASTBERT_VERSION;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    py::list isas;
#define ROW(name, mask) isas.append(#name);
    FASTBERT_COMPILED_ISAS(ROW)
#undef ROW
    info["isas"] = isas;
    info["cuda"] = FASTBERT_BUILT_CUDA;
    return info;
}

}  // namespace

void bind_runtime(py::module_& m) {
    m.def("build_info", build_info,
          "What this build holds: version, compiler, isas (names), cuda (yes/no and why).");
    m.def(
        "usable_isas",
        [] {
            py::list names;
            for (Isa isa : usable_isas()) names.append(name_of(isa));
            return names;
        },
        "Instruction sets this machine can run, the plainest first.");
    m.def(
        "missing_for", [](const std::string& name) { return missing_for(isa_from_name(name)); },
        py::arg("isa"), "CPU features this machine lacks for an instruction set; empty if none.");
    m.def("detected_isa", [] { return name_of(detected()); });
    m.def(
        "active_isa", [] { return name_of(active()); },
        "The instruction set in use: FASTBERT_CPU_ISA, else the best. ValueError if it cannot "
        "run.");
    m.def(
        "set_isa", [](const std::string& name) { set_active(isa_from_name(name)); }, py::arg("isa"),
        "Use another instruction set from now on. ValueError if unknown or not usable here.");
    m.def(
        "ask_for_huge_pages",
        [](std::uintptr_t address, index_t bytes) {
            ask_for_huge_pages(reinterpret_cast<void*>(address), bytes);
        },
        py::arg("address"), py::arg("bytes"),
        "Have memory that was not written yet taken from huge pages, where the kernel has some.");
    m.def("num_threads", max_threads, "Threads a call may use, the caller included.");
    m.def("set_num_threads", set_max_threads, py::arg("threads"), "ValueError below 1.");
    m.def(
        "use_one_loop_thread",
        [] {
            const LoopThreads former = use_one_loop_thread();
            return py::make_tuple(former.openmp, former.mkl);
        },
        "Let loops of OpenMP and MKL run on the calling thread alone; returns what was set "
        "before.");
    m.def(
        "set_loop_threads", [](int openmp, int mkl) { set_loop_threads({openmp, mkl}); },
        py::arg("openmp"), py::arg("mkl"), "Set what use_one_loop_thread returned.");
}

}  // namespace fastbert
