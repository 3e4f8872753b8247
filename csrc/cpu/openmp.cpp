#include "cpu/openmp.h"

#include <dlfcn.h>

namespace fastbert {
namespace {

// Looked up by name in what the process has loaded, since the package links none of its own.
template <typename Function>
Function openmp(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

// MKL stands inside of torch, whose names are not everyone's. It keeps a number of its own, so that
// a cosine of 128 elements would wake a thread all the same.
using MklThreads = int (*)(int);
MklThreads find_mkl_threads() {
    void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch == nullptr) return nullptr;
    const auto found = reinterpret_cast<MklThreads>(dlsym(torch, "MKL_Set_Num_Threads_Local"));
    dlclose(torch);  // torch itself is never unloaded
    return found;
}

MklThreads mkl_threads() {
    static const MklThreads found = find_mkl_threads();
    return found;
}

constexpr int omp_pause_soft = 1;

}  // namespace

void end_openmp_threads() {
    const auto pause = openmp<int (*)(int)>("omp_pause_resource_all");
    if (pause != nullptr) pause(omp_pause_soft);
}

LoopThreads use_one_loop_thread() {
    LoopThreads former;
    const auto most = openmp<int (*)()>("omp_get_max_threads");
    if (most != nullptr) former.openmp = most();
    if (mkl_threads() != nullptr) former.mkl = mkl_threads()(1);
    set_loop_threads({1, -1});
    return former;
}

void set_loop_threads(LoopThreads threads) {
    const auto set = openmp<void (*)(int)>("omp_set_num_threads");
    if (set != nullptr && threads.openmp > 0) set(threads.openmp);
    if (mkl_threads() != nullptr && threads.mkl >= 0) mkl_threads()(threads.mkl);
}

}  // namespace fastbert
