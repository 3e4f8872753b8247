// Stands in for csrc/cuda/ptx.cuh: the same names, with the behaviour that the PTX ISA documents,
// in C++ and stricter than the machine where it can be:
//   * shared memory starts as NaN, and so does the target of a copy from its issue until it lands;
//     a thread's own copies land when it waits for them, the copy engine's when nobody can go on;
//   * accumulators are NaN from a product's issue until its wait, and may not be touched;
//   * operands of a warpgroup's product must hold the same bytes at its issue and at its last wait;
//   * memory that a thread wrote is not readable by the copy engine or a warpgroup's product before
//     that thread's fence_async;
//   * addresses are checked: bounds, alignment, barriers that were never initialised.
#pragma once

#include "cuda/tensor_map.h"
#include "emulated_machine.h"
#include "emulated_products.h"

namespace fastbert::cuda::ptx {

using emulation::fail;
using emulation::shared;

inline unsigned char* dynamic_shared() { return shared().memory.data(); }

inline std::uint32_t shared_address(const void* p) { return shared().address(p); }

inline void store_shared(std::uint32_t address, uint4 value) {
    std::memcpy(shared().at(address, 16, 16), &value, 16);
    shared().written(address, 16);
}

inline uint4 load_shared(std::uint32_t address) {
    uint4 value;
    std::memcpy(&value, shared().at(address, 16, 16), 16);
    return value;
}

inline float load_anew(const float* from) { return *from; }

inline int opaque(int x) { return x; }

inline float exp2_approximate(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

template <DType D>
std::uint32_t pack(float low, float high) {
    return emulation::narrow<D>(low) | emulation::narrow<D>(high) << 16;
}

// --- A warp's matrix products --------------------------------------------------------------------

inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address, bool transposed = false) {
    struct Lane {
        std::uint32_t address;
        std::uint32_t* r;
        bool transposed;
    } mine{address, r, transposed};
    emulation::in_warp(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, [](void** all) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            std::uint16_t element[8][8];
            for (int row = 0; row < 8; ++row) {
                const auto* from = static_cast<Lane*>(all[8 * matrix + row]);
                std::memcpy(element[row], shared().at(from->address, 16, 16), 16);
            }
            for (int l = 0; l < 32; ++l) {
                auto* to = static_cast<Lane*>(all[l]);
                const int row = l / 4, column = l % 4 * 2;
                const std::uint32_t low =
                    to->transposed ? element[column][row] : element[row][column];
                const std::uint32_t high =
                    to->transposed ? element[column + 1][row] : element[row][column + 1];
                to->r[matrix] = low | high << 16;
            }
        }
    });
}

inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
    load_matrices(r, address, true);
}

namespace detail {

template <typename Sum>
struct WarpProduct {
    Sum* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
};

// Registers of 32 bits hold `each` elements of a row: a[2 * half + row / 8], b[half].
template <int each, typename Sum, typename A, typename B>
void warp_product(void** all, A a_of, B b_of) {
    using Lane = WarpProduct<Sum>;
    constexpr int depth = 8 * each;
    for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
            Sum sum = 0;
            for (int k = 0; k < depth; ++k) {
                const int half = k / (4 * each), quad = k % (4 * each) / each, part = k % each;
                const auto* a = static_cast<Lane*>(all[row % 8 * 4 + quad]);
                const auto* b = static_cast<Lane*>(all[column * 4 + quad]);
                sum += static_cast<Sum>(a_of(a->a[2 * half + row / 8], part)) *
                       static_cast<Sum>(b_of(b->b[half], part));
            }
            auto* to = static_cast<Lane*>(all[row % 8 * 4 + column / 2]);
            to->c[row / 8 * 2 + column % 2] += sum;
        }
    }
}

}  // namespace detail

template <DType D>
void multiply_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                      std::uint32_t b1) {
    detail::WarpProduct<float> mine{c, a, {b0, b1}};
    emulation::in_warp("mma.m16n8k16", &mine, [](void** all) {
        const auto half = [](std::uint32_t word, int part) {
            return emulation::widen<D>(static_cast<std::uint16_t>(word >> (16 * part)));
        };
        detail::warp_product<2, float>(all, half, half);
    });
}

inline void multiply_16x8x32(std::int32_t (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
    detail::WarpProduct<std::int32_t> mine{c, a, {b0, b1}};
    emulation::in_warp("mma.m16n8k32", &mine, [](void** all) {
        detail::warp_product<4, std::int32_t>(
            all, [](std::uint32_t w, int part) { return static_cast<std::uint8_t>(w >> 8 * part); },
            [](std::uint32_t w, int part) { return static_cast<std::int8_t>(w >> 8 * part); });
    });
}

// --- Copies that a thread waits for --------------------------------------------------------------

inline void copy_async(std::uint32_t to, const void* from, bool valid) {
    if (valid && reinterpret_cast<std::uintptr_t>(from) % 16 != 0) fail("cp.async: source");
    emulation::Landing landing{to, std::vector<unsigned char>(16, 0), 0};
    if (valid) std::memcpy(landing.bytes.data(), from, 16);
    std::memset(shared().at(to, 16, 16), 0xff, 16);
    shared().of_thread().copies.push_back(std::move(landing));
}

inline void copy_async_commit() {
    auto& mine = shared().of_thread();
    mine.copy_groups.push_back(std::move(mine.copies));
    mine.copies.clear();
}

template <int pending>
void copy_async_wait() {
    auto& groups = shared().of_thread().copy_groups;
    while (groups.size() > pending) {
        for (const emulation::Landing& landing : groups.front()) {
            std::memcpy(shared().at(landing.to, 16, 16), landing.bytes.data(), 16);
            shared().written(landing.to, 16);
        }
        groups.erase(groups.begin());
    }
}

// --- Barriers ------------------------------------------------------------------------------------

inline void named_barrier(int id, int threads) {
    if (id < 1 || id > 15 || threads % 32 != 0) fail("bar.sync: barrier or threads");
    emulation::barriers[id].join([threads] { return threads; });
}

inline void barrier_init(std::uint32_t barrier, int count) {
    shared().at(barrier, 8, 8);
    shared().barriers[barrier] = {count, count, 0, 0, false};
}

inline void barrier_init_fence() {
    for (auto& [address, barrier] : shared().barriers) barrier.fenced = true;
}

inline void barrier_arrive(std::uint32_t barrier) { shared().barrier(barrier).arrive(0); }

inline void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
    shared().barrier(barrier).arrive(bytes);
}

inline void barrier_wait(std::uint32_t barrier, int parity) {
    emulation::Barrier& mine = shared().barrier(barrier);
    if (parity != 0 && parity != 1) fail("mbarrier: parity");
    emulation::wait_until([&] { return mine.phase != parity; });
}

inline void fence_async() { shared().fence(); }

// --- The copy engine -----------------------------------------------------------------------------

inline void prefetch(const TensorMap*) {}

inline void load_box(std::uint32_t to, const TensorMap* map, std::uint32_t barrier, int x, int y,
                     int z = 0) {
    shared().load_box(to, *map, barrier, x, y, z);
}

inline void store_box(const TensorMap* map, std::uint32_t from, int x, int y) {
    shared().store_box(*map, from, x, y);
}

inline void store_commit() { shared().of_thread().stores_committed = true; }

// Stores read shared memory here, as late as they may.
template <int pending>
void store_wait() {
    static_assert(pending == 0, "the emulation knows one group of stores");
    shared().finish_stores();
}

// --- A warpgroup's matrix products ---------------------------------------------------------------

template <int row_bytes>
std::uint64_t describe(std::uint32_t address, int group_stride, int block_stride = 16) {
    constexpr std::uint64_t mode = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
    const auto field = [](std::uint32_t bytes) {
        if (bytes % 16 != 0 || bytes >> 18 != 0) fail("wgmma: a field of a descriptor");
        return std::uint64_t{bytes >> 4};
    };
    return field(address) | field(static_cast<std::uint32_t>(block_stride)) << 16 |
           field(static_cast<std::uint32_t>(group_stride)) << 32 | mode << 62;
}

inline void products_fence() { emulation::products().fence(); }
inline void products_commit() { emulation::products().commit(); }

template <int pending>
void products_wait() {
    emulation::products().wait(pending);
}

template <int>
void raise_registers() {}
template <int>
void drop_registers() {}

template <DType D, int N>
struct WarpgroupMma {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "widths are multiples of 8 up to 256");

    template <bool a_k_major = true, bool b_k_major = true>
    static void issue(float (&c)[N / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
        emulation::products().issue({D, N, a_k_major, b_k_major, accumulate, true, a, b}, c,
                                    nullptr);
    }

    template <bool b_k_major = true>
    static void issue_a_in_registers(float (&c)[N / 2], const std::uint32_t (&a)[4],
                                     std::uint64_t b, bool accumulate) {
        emulation::products().issue({D, N, true, b_k_major, accumulate, false, 0, b}, c, a);
    }
};

template <int N>
struct WarpgroupMma<DType::u8, N> {
    static_assert(N == 8 || N == 24 || (N % 16 == 0 && N <= 256), "widths of 8-bit products");

    static void issue(std::int32_t (&c)[N / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
        emulation::products().issue({DType::u8, N, true, true, accumulate, true, a, b}, c, nullptr);
    }
};

}  // namespace fastbert::cuda::ptx
