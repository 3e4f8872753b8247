// The one launch statement. FASTBERT_EMULATE_LAUNCH stands in for it where tests run kernels on the
// CPU.
#pragma once

#include <cuda_runtime_api.h>

namespace fastbert::cuda {

// Starts a kernel with dynamic shared memory; Launch::check() sees what went wrong.
template <typename Kernel, typename... Args>
void start_shared(Kernel kernel, dim3 grid, int threads, int shared_bytes, void* stream,
                  const Args&... args) {
#ifdef FASTBERT_EMULATE_LAUNCH
    (void)stream;
    FASTBERT_EMULATE_LAUNCH(grid, threads, shared_bytes, [&] { kernel(args...); });
#else
    // Beyond 48 KiB a kernel has to ask. Cheap, and per device, so it is not cached.
    if (shared_bytes > 48 * 1024 &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) !=
            cudaSuccess) {
        return;
    }
    // clang-format off
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
    // clang-format on
#endif
}

template <typename Kernel, typename... Args>
void start(Kernel kernel, dim3 grid, int threads, void* stream, const Args&... args) {
    start_shared(kernel, grid, threads, 0, stream, args...);
}

}  // namespace fastbert::cuda
