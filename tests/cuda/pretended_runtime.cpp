// A CUDA runtime of two devices that remembers which one is current, and who has a context.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/launch.h"

namespace {

int current = 0;
bool used[2] = {};

CUresult state(CUdevice device, unsigned*, int* active) {
    *active = used[device];
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    current = device;
    used[device] = true;  // from CUDA 12 on
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 2;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 9;
    return cudaSuccess;
}
cudaError_t found(void** entry, cudaDriverEntryPointQueryResult* result) {
    *entry = reinterpret_cast<void*>(&state);
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    return found(entry, result);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char*, void** entry, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
    return found(entry, result);
}
#endif
}

// DEVICE USED CURRENT: launch once on a device, where the process has a context on CURRENT or not.
int main(int, char** arguments) {
    const int device = std::atoi(arguments[1]);
    current = std::atoi(arguments[3]);
    used[current] = arguments[2][0] == '1';
    int meanwhile = -1;
    {
        fastbert::cuda::Launch launch("op", device);
        meanwhile = current;
    }
    std::printf("%d %d %d%d\n", meanwhile, current, used[0], used[1]);
}
