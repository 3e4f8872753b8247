// ptx::WarpgroupMma: the widths and element types of a warpgroup's products that the kernels use.
// The instruction names every accumulator register, hence the macros; ptx.cuh says what they mean.
#pragma once

// clang-format off
#define FASTBERT_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FASTBERT_NAMES_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTBERT_NAMES_2H "%32, %33, %34, %35, %36, %37, %38, %39"
#define FASTBERT_NAMES_2 FASTBERT_NAMES_2H ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FASTBERT_NAMES_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTBERT_NAMES_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FASTBERT_NAMES_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTBERT_NAMES_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FASTBERT_NAMES_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FASTBERT_NAMES_N32 FASTBERT_NAMES_0
#define FASTBERT_NAMES_N64 FASTBERT_NAMES_N32 ", " FASTBERT_NAMES_1
#define FASTBERT_NAMES_N80 FASTBERT_NAMES_N64 ", " FASTBERT_NAMES_2H
#define FASTBERT_NAMES_N96 FASTBERT_NAMES_N64 ", " FASTBERT_NAMES_2
#define FASTBERT_NAMES_N128 FASTBERT_NAMES_N96 ", " FASTBERT_NAMES_3
#define FASTBERT_NAMES_N192 FASTBERT_NAMES_N128 ", " FASTBERT_NAMES_4 ", " FASTBERT_NAMES_5
#define FASTBERT_NAMES_N256 FASTBERT_NAMES_N192 ", " FASTBERT_NAMES_6 ", " FASTBERT_NAMES_7

#define FASTBERT_C8(k, i) k(c[i]), k(c[i + 1]), k(c[i + 2]), k(c[i + 3]), k(c[i + 4]), k(c[i + 5]), k(c[i + 6]), k(c[i + 7])
#define FASTBERT_C_N32(k) FASTBERT_C8(k, 0), FASTBERT_C8(k, 8)
#define FASTBERT_C_N64(k) FASTBERT_C_N32(k), FASTBERT_C8(k, 16), FASTBERT_C8(k, 24)
#define FASTBERT_C_N80(k) FASTBERT_C_N64(k), FASTBERT_C8(k, 32)
#define FASTBERT_C_N96(k) FASTBERT_C_N80(k), FASTBERT_C8(k, 40)
#define FASTBERT_C_N128(k) FASTBERT_C_N96(k), FASTBERT_C8(k, 48), FASTBERT_C8(k, 56)
#define FASTBERT_C_N192(k) FASTBERT_C_N128(k), FASTBERT_C8(k, 64), FASTBERT_C8(k, 72), FASTBERT_C8(k, 80), FASTBERT_C8(k, 88)
#define FASTBERT_C_N256(k) FASTBERT_C_N192(k), FASTBERT_C8(k, 96), FASTBERT_C8(k, 104), FASTBERT_C8(k, 112), FASTBERT_C8(k, 120)
#define FASTBERT_FLOAT(x) "+f"(x)
#define FASTBERT_INT(x) "+r"(x)
// clang-format on

// a0 .. a6 are the numbers of the operands that follow the accumulators.
#define FASTBERT_MMA_16(N, CODE, TYPE, A0, A1, A2, A3, A4, A5, A6)                                \
    template <>                                                                                   \
    struct WarpgroupMma<DType::CODE, N> {                                                         \
        template <bool a_k_major = true, bool b_k_major = true>                                   \
        static __device__ void issue(float (&c)[N / 2], std::uint64_t a, std::uint64_t b,         \
                                     bool accumulate) {                                           \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " A2                               \
                         ", 0;\n"                                                                 \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE          \
                         " {" FASTBERT_NAMES_N##N "}, " A0 ", " A1 ", add, 1, 1, " A3 ", " A4     \
                                                  ";\n}"                                          \
                         : FASTBERT_C_N##N(FASTBERT_FLOAT)                                        \
                         : "l"(a), "l"(b), "r"(accumulate ? 1 : 0), "n"(a_k_major ? 0 : 1),       \
                           "n"(b_k_major ? 0 : 1));                                               \
        }                                                                                         \
        template <bool b_k_major = true>                                                          \
        static __device__ void issue_a_in_registers(float (&c)[N / 2],                            \
                                                    const std::uint32_t (&a)[4], std::uint64_t b, \
                                                    bool accumulate) {                            \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " A5                               \
                         ", 0;\n"                                                                 \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE          \
                         " {" FASTBERT_NAMES_N##N "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " A4      \
                                                  ", add, 1, 1, " A6 ";\n}"                       \
                         : FASTBERT_C_N##N(FASTBERT_FLOAT)                                        \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                    \
                           "r"(accumulate ? 1 : 0), "n"(b_k_major ? 0 : 1));                      \
        }                                                                                         \
    };

// uint8 x int8, both K-major, 32 deep.
#define FASTBERT_MMA_8(N, A0, A1, A2)                                                            \
    template <>                                                                                  \
    struct WarpgroupMma<DType::u8, N> {                                                          \
        static __device__ void issue(std::int32_t (&c)[N / 2], std::uint64_t a, std::uint64_t b, \
                                     bool accumulate) {                                          \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " A2                              \
                         ", 0;\n"                                                                \
                         "wgmma.mma_async.sync.aligned.m64n" #N                                  \
                         "k32.s32.u8.s8 {" FASTBERT_NAMES_N##N "}, " A0 ", " A1 ", add;\n}"      \
                         : FASTBERT_C_N##N(FASTBERT_INT)                                         \
                         : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));                             \
        }                                                                                        \
    };

#define FASTBERT_MMAS(N, A0, A1, A2, A3, A4, A5, A6)             \
    FASTBERT_MMA_16(N, bf16, "bf16", A0, A1, A2, A3, A4, A5, A6) \
    FASTBERT_MMA_16(N, f16, "f16", A0, A1, A2, A3, A4, A5, A6)   \
    FASTBERT_MMA_8(N, A0, A1, A2)

namespace fastbert::cuda::ptx {

FASTBERT_MMAS(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
FASTBERT_MMAS(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
FASTBERT_MMAS(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
FASTBERT_MMAS(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
FASTBERT_MMAS(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
FASTBERT_MMAS(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
FASTBERT_MMAS(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

}  // namespace fastbert::cuda::ptx
