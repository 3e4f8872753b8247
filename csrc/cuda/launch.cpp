#include "cuda/launch.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <stdexcept>

namespace fastbert::cuda {

namespace {

[[noreturn]] void refuse(const char* op, const std::string& sentence) {
    throw std::runtime_error(std::string(op) + ": " + sentence);
}

// Whether this process uses a device already. To make one current that it does not use would create
// a context there, some 500 MB.
bool in_use(int device) {
    static const auto ask = reinterpret_cast<decltype(&cuDevicePrimaryCtxGetState)>(
        driver_entry("cuDevicePrimaryCtxGetState", 7000));
    unsigned flags = 0;
    int active = 0;
    return ask == nullptr || ask(device, &flags, &active) != CUDA_SUCCESS || active != 0;
}

}  // namespace

void* driver_entry(const char* name, unsigned since) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion(name, &entry, since, cudaEnableDefault, &result);
#else  // which gives the newest form there is; those asked for here have had one since
    (void)since;
    const cudaError_t status = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &result);
#endif
    return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? entry : nullptr;
}

std::string unavailable() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        cudaGetLastError();
        return std::string("no CUDA device can be used (") + cudaGetErrorString(status) +
               "); check that this machine has an NVIDIA GPU and its driver, or choose another "
               "backend";
    }
    return count > 0 ? "" : "this machine has no CUDA device; choose another backend";
}

DeviceTraits device_traits(const char* op, int device) {
    DeviceTraits traits{};
    cudaError_t status =
        cudaDeviceGetAttribute(&traits.major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess) {
        status =
            cudaDeviceGetAttribute(&traits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (status != cudaSuccess) {
        cudaGetLastError();
        refuse(op, "CUDA device " + std::to_string(device) + " can not be asked what it is (" +
                       cudaGetErrorString(status) + ").");
    }
    return traits;
}

Launch::Launch(const char* op, int device) : op_(op), device_(device), previous_(device) {
    const std::string reason = unavailable();
    if (!reason.empty()) refuse(op, reason + ".");
    cudaError_t status = cudaGetDevice(&previous_);
    if (status == cudaSuccess && previous_ != device) status = cudaSetDevice(device);
    if (status != cudaSuccess) {
        cudaGetLastError();
        refuse(op, "CUDA device " + std::to_string(device) + " can not be used (" +
                       cudaGetErrorString(status) + ").");
    }
    // A leftover of somebody else's launch must not be reported as ours.
    cudaGetLastError();
}

Launch::~Launch() {
    if (previous_ != device_ && in_use(previous_)) cudaSetDevice(previous_);
}

void Launch::check() const {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) {
        refuse(op_, std::string("the kernel was not launched (") + cudaGetErrorString(status) +
                        "); this build holds code for sm_80 and sm_90 and later.");
    }
}

}  // namespace fastbert::cuda
