// Shared memory with what watches over it: barriers, the copy engine, who wrote what unfenced.
#pragma once

#include <deque>
#include <map>

#include "common/types.h"
#include "cuda/tensor_map.h"

namespace emulation {

using fastbert::DType;
using fastbert::cuda::TensorMap;

template <DType D>
float widen(std::uint16_t bits) {
    if constexpr (D == DType::bf16) {
        const std::uint32_t wide = std::uint32_t{bits} << 16;
        float out;
        std::memcpy(&out, &wide, sizeof out);
        return out;
    } else {
        __half_raw raw;
        raw.x = bits;
        return __half2float(__half(raw));
    }
}

template <DType D>
std::uint32_t narrow(float x) {
    std::uint16_t bits;
    if constexpr (D == DType::bf16) {
        const __nv_bfloat16 half = __float2bfloat16_rn(x);
        std::memcpy(&bits, &half, sizeof bits);
    } else {
        const __half half = __float2half_rn(x);
        std::memcpy(&bits, &half, sizeof bits);
    }
    return bits;
}

// Bits 4 and up of an address are mixed with those from bit 7 on, within the span of a row.
inline std::uint32_t swizzled(std::uint32_t address, int row_bytes) {
    return address ^ (address >> 3 & static_cast<std::uint32_t>(row_bytes - 16));
}

// How tests/cuda/emulated/tensor_map.cpp fills a TensorMap.
struct EmulatedMap {
    std::uint64_t data;
    std::int32_t element_bytes, rank;
    std::int64_t size[3], stride_bytes[3];
    std::int32_t box[3];
    std::uint32_t magic;
};
static_assert(sizeof(EmulatedMap) <= sizeof(TensorMap), "fits the driver's size");
constexpr std::uint32_t map_magic = 0x7e4504a9;

struct Landing {
    std::uint32_t to;
    std::vector<unsigned char> bytes;
    std::uint32_t barrier;
};

struct Barrier {
    int count, pending, bytes, phase;
    bool fenced;

    void arrive(int expected_bytes) {
        if (pending == 0) fail("mbarrier: more arrivals than its count");
        bytes += expected_bytes;
        --pending;
        advance();
    }
    void land(int landed) {
        bytes -= landed;
        advance();
    }
    void advance() {
        if (pending > 0 || bytes != 0) return;
        pending = count;
        phase ^= 1;
        moved = true;
    }
};

class Shared : public Machine {
  public:
    struct Thread {
        std::vector<Landing> copies;
        std::vector<std::vector<Landing>> copy_groups;
        std::vector<std::uint32_t> unfenced;
        std::vector<std::function<void()>> stores;
        bool stores_committed = false;
    };
    std::vector<unsigned char> memory;
    std::map<std::uint32_t, Barrier> barriers;

    Shared() { machines.push_back(this); }

    void begin_block(int threads, int shared_bytes) override {
        if (shared_bytes > 227 * 1024) fail("a block has at most 227 KiB of shared memory");
        bytes_ = shared_bytes;
        memory.assign(shared_bytes, 0xff);
        writer_.assign(shared_bytes / 16 + 1, 0);
        barriers.clear();
        threads_.assign(threads, Thread{});
        flying_.clear();
    }
    void end_block() override {
        if (!flying_.empty()) fail("the block ends before its copies have landed");
        for (const Thread& thread : threads_) {
            if (!thread.stores.empty()) fail("the block ends before its stores have read");
        }
    }

    Thread& of_thread() { return threads_[thread_index.x]; }

    std::uint32_t address(const void* p) const {
        return static_cast<std::uint32_t>(static_cast<const unsigned char*>(p) - memory.data()) +
               first_address;
    }
    unsigned char* at(std::uint32_t address, int bytes, int alignment) {
        if (address < first_address || address - first_address + bytes > bytes_) {
            fail("shared memory: address " + std::to_string(address) + " of " +
                 std::to_string(bytes_) + " bytes from " + std::to_string(first_address));
        }
        if (address % alignment != 0) fail("shared memory: alignment");
        return memory.data() + (address - first_address);
    }

    Barrier& barrier(std::uint32_t address) {
        const auto found = barriers.find(address);
        if (found == barriers.end()) fail("mbarrier: not initialised");
        return found->second;
    }

    // By this thread, in the ordinary way.
    void written(std::uint32_t address, int bytes) {
        for (std::uint32_t a = address / 16; a <= (address + bytes - 1) / 16; ++a) {
            writer_[a - first_address / 16] = static_cast<int>(thread_index.x) + 1;
            of_thread().unfenced.push_back(a - first_address / 16);
        }
    }
    void fence() {
        for (const std::uint32_t unit : of_thread().unfenced) {
            if (writer_[unit] == static_cast<int>(thread_index.x) + 1) writer_[unit] = 0;
        }
        of_thread().unfenced.clear();
    }
    // What the copy engine or a warpgroup's product is about to touch.
    void check_fenced(std::uint32_t address, int bytes) {
        for (std::uint32_t a = address / 16; a <= (address + bytes - 1) / 16; ++a) {
            if (writer_[a - first_address / 16] != 0) {
                fail("shared memory written by thread " +
                     std::to_string(writer_[a - first_address / 16] - 1) + " without fence_async");
            }
        }
    }

    void load_box(std::uint32_t to, const TensorMap& map, std::uint32_t barrier_address, int x,
                  int y, int z) {
        if (!barrier(barrier_address).fenced) fail("mbarrier: not fenced for the copy engine");
        std::vector<Landing> box;
        each_row(map, to, x, y, z,
                 [&](std::uint32_t row, int row_bytes, const unsigned char* from, int inside) {
                     for (int b = 0; b < row_bytes; b += 16) {
                         Landing part{swizzled(row + b, row_bytes),
                                      std::vector<unsigned char>(16, 0), barrier_address};
                         const int kept = std::min(std::max(inside - b, 0), 16);
                         if (kept > 0) std::memcpy(part.bytes.data(), from + b, kept);
                         unsigned char* target = at(part.to, 16, 16);
                         check_fenced(part.to, 16);
                         std::memset(target, 0xff, 16);
                         box.push_back(std::move(part));
                     }
                 });
        flying_.push_back(std::move(box));
    }
    bool land_one() override {
        if (flying_.empty()) return false;
        for (const Landing& part : flying_.front()) {
            std::memcpy(at(part.to, 16, 16), part.bytes.data(), 16);
            barrier(part.barrier).land(16);
        }
        flying_.pop_front();
        return true;
    }

    void store_box(const TensorMap& map, std::uint32_t from, int x, int y) {
        each_row(map, from, x, y, 0,
                 [&](std::uint32_t row, int row_bytes, const unsigned char* to, int inside) {
                     for (int b = 0; b < row_bytes; b += 16) {
                         const std::uint32_t source = swizzled(row + b, row_bytes);
                         check_fenced(source, 16);
                         const int kept = std::min(std::max(inside - b, 0), 16);
                         unsigned char* target = const_cast<unsigned char*>(to) + b;
                         of_thread().stores.push_back([this, source, target, kept] {
                             std::memcpy(target, at(source, 16, 16), kept);
                         });
                     }
                 });
        of_thread().stores_committed = false;
    }
    void finish_stores() {
        if (!of_thread().stores.empty() && !of_thread().stores_committed) {
            fail("waits for stores that were never committed");
        }
        for (const auto& store : of_thread().stores) store();
        of_thread().stores.clear();
    }

  private:
    static constexpr std::uint32_t first_address = 1024;

    // visit(shared address, bytes, global address, bytes inside the tensor) for a box's rows.
    template <typename Visit>
    void each_row(const TensorMap& packed, std::uint32_t address, int x, int y, int z,
                  Visit visit) {
        EmulatedMap map;
        std::memcpy(&map, &packed, sizeof map);
        if (map.magic != map_magic) fail("tensor map: not one");
        const int row_bytes = map.box[0] * map.element_bytes;
        if (address % (8 * row_bytes) != 0) fail("tensor map: a box starts amid its swizzle");
        const int depth = map.rank == 3 ? map.box[2] : 1;
        for (int c = 0; c < depth; ++c) {
            for (int r = 0; r < map.box[1]; ++r) {
                const bool exists = x >= 0 && y + r >= 0 && y + r < map.size[1] && z + c >= 0 &&
                                    (map.rank == 2 || z + c < map.size[2]);
                const auto* from = reinterpret_cast<const unsigned char*>(map.data) +
                                   std::int64_t{x} * map.element_bytes +
                                   (y + r) * map.stride_bytes[1] +
                                   (map.rank == 3 ? (z + c) * map.stride_bytes[2] : 0);
                const std::int64_t inside = (map.size[0] - x) * map.element_bytes;
                visit(address + (c * map.box[1] + r) * row_bytes, row_bytes, from,
                      exists ? static_cast<int>(std::min<std::int64_t>(inside, row_bytes)) : 0);
            }
        }
    }

    std::uint32_t bytes_ = 0;
    std::vector<int> writer_;  // per 16 bytes: 1 + the thread whose write is not fenced
    std::vector<Thread> threads_;
    std::deque<std::vector<Landing>> flying_;  // a box each
};

inline Shared& shared() {
    static Shared one;
    return one;
}

// Before the first launch, whichever file it is in.
inline Shared& shared_exists = shared();

}  // namespace emulation
