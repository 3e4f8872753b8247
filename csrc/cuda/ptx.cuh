// The machine's instructions that C++ has no words for, one thin wrapper each: matrix products,
// asynchronous copies, barriers. Nothing here chooses anything.
//
// Shared memory is named by 32-bit addresses, and stores to it that a matrix product or the copy
// engine reads go through store_shared. tests/cuda/emulated/cuda/ptx.cuh has the same names with
// the documented behaviour spelled out in C++, so that kernels written on them run on a CPU.
//
// Source: NVIDIA, "PTX ISA" 9.0, chapter 9.7 (instructions), 9.7.15 (fragments, descriptors).
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cuda/tensor_map.h"

namespace fastbert::cuda::ptx {

// The block's dynamic shared memory; launches that use swizzles rely on its alignment.
__device__ inline unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory;
}

__device__ inline std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void store_shared(std::uint32_t address, uint4 value) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

__device__ inline uint4 load_shared(std::uint32_t address) {
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

// From global memory, each time it is written: never kept for a second use.
__device__ inline float load_anew(const float* from) {
    float value;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(from));
    return value;
}

// x, of which the compiler knows nothing.
__device__ inline int opaque(int x) {
    int y;
    asm("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// 2^x; 2^-inf = 0. Relative error at most 2^-22, subnormal results are 0.
__device__ inline float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// low in the lower half.
template <DType D>
__device__ inline std::uint32_t pack(float low, float high) {
    std::uint32_t out;
    if constexpr (D == DType::bf16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    } else {
        static_assert(D == DType::f16, "pairs are bf16 or f16");
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    }
    return out;
}

// --- A warp's matrix products --------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 and
// receives elements 2 * (l % 4) and the next of row l / 4 of each.
__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// As load_matrices, each matrix transposed.
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// c (16 x 8, float32) += a (16 x 16) b (16 x 8). Lane l holds of c rows l / 4 and l / 4 + 8 at
// columns 2 * (l % 4) and the next; of a the same rows at columns as c's and 8 further on; of b
// rows 2 * (l % 4), the next, and 8 further on, at column l / 4.
template <DType D>
__device__ inline void multiply_16x8x16(float (&c)[4], const std::uint32_t (&a)[4],
                                        std::uint32_t b0, std::uint32_t b1) {
    if constexpr (D == DType::bf16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        static_assert(D == DType::f16, "operands are bf16 or f16");
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// c (16 x 8, int32) += a (16 x 32, uint8) b (32 x 8, int8): registers as above, each with four
// 8-bit elements in place of two 16-bit ones.
__device__ inline void multiply_16x8x32(std::int32_t (&c)[4], const std::uint32_t (&a)[4],
                                        std::uint32_t b0, std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- Copies that a thread waits for --------------------------------------------------------------

// 16 bytes from global to shared memory; zeros when not `valid` (`from` is then not read).
__device__ inline void copy_async(std::uint32_t to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `pending` of this thread's groups have not landed.
template <int pending>
__device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- Barriers ------------------------------------------------------------------------------------

// Threads of part of a block meet; id 1 to 15 (0 is __syncthreads), a multiple of 32 threads.
__device__ inline void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// An mbarrier: 8 bytes of shared memory whose phase ends when `count` arrivals have come and the
// expected bytes have landed.
__device__ inline void barrier_init(std::uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Between barrier_init and their first use by the copy engine; __syncthreads is needed as well.
__device__ inline void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(std::uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Until the phase of this parity has ended. The first phase has parity 0; before it ends, the one
// "before" it, of parity 1, counts as ended.
__device__ inline void barrier_wait(std::uint32_t barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra again;\n"
        "finished:\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Orders this thread's own accesses to shared memory before later ones of the copy engine and of
// matrix products that read shared memory.
__device__ inline void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- The copy engine (sm_90) ---------------------------------------------------------------------

__device__ inline void prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box of the tensor whose first element is at the coordinates (innermost first), zeros outside
// the tensor; counts its bytes at the barrier.
__device__ inline void load_box(std::uint32_t to, const TensorMap* map, std::uint32_t barrier,
                                int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}

__device__ inline void load_box(std::uint32_t to, const TensorMap* map, std::uint32_t barrier,
                                int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// A box back to the tensor; what lies outside the tensor is not written.
__device__ inline void store_box(const TensorMap* map, std::uint32_t from, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            map),
        "r"(from), "r"(x), "r"(y)
        : "memory");
}

__device__ inline void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most `pending` of this thread's groups of stores still read shared memory.
template <int pending>
__device__ inline void store_wait() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// --- A warpgroup's matrix products (sm_90a) ------------------------------------------------------

// How an operand of a warpgroup's product lies in shared memory. Rows run along the contiguous
// direction, `row_bytes` = the span of the swizzle; eight rows are one group. Two forms:
//   K-major: rows of the operand, one 32-byte step of the sum inside a row. `group_stride` is from
//     one group of eight rows to the next; `block_stride` is not used.
//   M/N-major: rows are positions of the sum (16 of them, two groups `group_stride` apart), and
//     runs along M or N continue in blocks of `row_bytes`, `block_stride` apart.
// Groups start at multiples of 8 * row_bytes; only steps inside a row may shift the address.
template <int row_bytes>
__device__ inline std::uint64_t describe(std::uint32_t address, int group_stride,
                                         int block_stride = 16) {
    static_assert(row_bytes == 32 || row_bytes == 64 || row_bytes == 128, "a swizzled row");
    constexpr std::uint64_t mode = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
    const auto field = [](int bytes) { return static_cast<std::uint64_t>((bytes & 0x3ffff) >> 4); };
    return field(static_cast<int>(address)) | field(block_stride) << 16 |
           field(group_stride) << 32 | mode << 62;
}

// Before a warpgroup's first product, and again after its threads touched accumulators or operands
// in registers.
__device__ inline void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int pending>
__device__ inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Registers per thread of this warpgroup from here on.
template <int registers>
__device__ inline void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ inline void drop_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Products of m64: c (64 x N) = a b, plus c itself when `accumulate`. Thread t of the warpgroup
// holds row 16 * (t / 32) + (t % 32) / 4 and the one 8 below: c[4 * j], c[4 * j + 1] are columns
// 8 * j + 2 * (t % 4) and the next of the first, c[4 * j + 2], c[4 * j + 3] of the second.
// a_in_registers takes a as the fragments of multiply_16x8x16, one warp's 16 rows each.
// Asynchronous: c, a and the operands in shared memory belong to the machine until products_wait.
template <DType D, int N>
struct WarpgroupMma;

}  // namespace fastbert::cuda::ptx

#include "cuda/warpgroup_mma.cuh"
