// A warpgroup's asynchronous products: descriptors decoded, operands watched, results handed over
// warp by warp when each waits.
#pragma once

#include "emulated_machine.h"

namespace emulation {

struct ProductForm {
    DType dtype;
    int N;
    bool a_k_major, b_k_major, accumulate, a_in_shared;
    std::uint64_t a, b;

    bool operator==(const ProductForm& other) const {
        return dtype == other.dtype && N == other.N && a_k_major == other.a_k_major &&
               b_k_major == other.b_k_major && accumulate == other.accumulate &&
               a_in_shared == other.a_in_shared && a == other.a && b == other.b;
    }
};

// Accumulators are moved as 32-bit words, whatever they mean.
struct PendingProduct {
    ProductForm form;
    std::vector<unsigned char> a_bytes, b_bytes;  // at issue, [row][32]
    void* c[128];
    const std::uint32_t* a_registers[128];
    std::uint32_t a_values[128][4];
    std::vector<std::uint32_t> start[4];  // a warp's accumulators before; empty: its predecessor's
    int warps_done = 0;
};

class Products : public Machine {
  public:
    Products() { machines.push_back(this); }

    void begin_block(int, int) override {
        for (Warp& warp : warp_) warp = Warp{};
    }
    void end_block() override {
        for (const Warp& warp : warp_) {
            if (!warp.open.empty() || !warp.groups.empty()) {
                fail("the block ends before its products were waited for");
            }
        }
    }

    void fence() {
        in_warp("wgmma.fence", nullptr, [](void**) {});
        mine().fenced = true;
    }

    template <typename Sum>
    void issue(const ProductForm& form, Sum* c, const std::uint32_t* a) {
        static_assert(sizeof(Sum) == 4, "32-bit accumulators");
        struct Thread {
            ProductForm form;
            void* c;
            const std::uint32_t* a;
        } thread{form, c, a};
        if (!mine().fenced) fail("wgmma: no wgmma.fence since the last wait");
        const int group = static_cast<int>(thread_index.x / 128);
        if (static_cast<unsigned>(group * 128 + 128) > block_size.x) fail("wgmma: warpgroup");
        warpgroups[group].meet(
            128, static_cast<int>(thread_index.x % 128), "wgmma", &thread, [&](void** all) {
                auto product = std::make_shared<PendingProduct>();
                product->form = form;
                for (int t = 0; t < 128; ++t) {
                    const auto* one = static_cast<Thread*>(all[t]);
                    if (!(one->form == form)) fail("wgmma: operands differ between threads");
                    product->c[t] = one->c;
                    product->a_registers[t] = one->a;
                    if (one->a != nullptr) std::memcpy(product->a_values[t], one->a, 16);
                }
                if (form.a_in_shared) {
                    product->a_bytes = operand(form.dtype, form.a, 64, form.a_k_major);
                }
                product->b_bytes = operand(form.dtype, form.b, form.N, form.b_k_major);
                for (int w = 0; w < 4; ++w) begin_for_warp(group * 4 + w, product);
            });
    }

    void commit() {
        in_warp("wgmma.commit_group", nullptr, [&](void**) {
            mine().groups.push_back(std::move(mine().open));
            mine().open.clear();
        });
    }

    void wait(int pending) {
        in_warp("wgmma.wait_group", nullptr, [&](void**) {
            Warp& warp = mine();
            while (warp.groups.size() > static_cast<std::size_t>(pending)) {
                const auto group = std::move(warp.groups.front());
                warp.groups.erase(warp.groups.begin());
                for (std::size_t i = 0; i < group.size(); ++i) {
                    finish(static_cast<int>(thread_index.x / 32), group, i);
                }
            }
            warp.fenced = false;
        });
    }

  private:
    using Pointer = std::shared_ptr<PendingProduct>;
    struct Warp {
        std::vector<Pointer> open;
        std::vector<std::vector<Pointer>> groups;
        bool fenced = false;
    };
    static constexpr std::uint32_t poison = 0xffffffffu;

    Warp& mine() { return warp_[thread_index.x / 32]; }

    // Bytes [row of the operand][32 bytes along the sum], through the descriptor.
    static std::vector<unsigned char> operand(DType dtype, std::uint64_t descriptor, int rows,
                                              bool k_major) {
        const auto field = [&](int bit) {
            return static_cast<std::uint32_t>(descriptor >> bit & 0x3fff) << 4;
        };
        const std::uint32_t start = field(0), block = field(16), group = field(32);
        const int mode = static_cast<int>(descriptor >> 62);
        if (mode == 0) fail("wgmma: layouts without a swizzle are not emulated");
        const std::uint32_t row_bytes = mode == 1 ? 128 : mode == 2 ? 64 : 32;
        const int each = dtype == DType::u8 ? 1 : 2;
        if (each == 1 && !k_major) fail("wgmma: 8-bit operands are K-major");
        // Only a step inside a row may move the start off the swizzle's period.
        if (start % (8 * row_bytes) >= row_bytes) fail("wgmma: operand starts amid its swizzle");
        std::vector<unsigned char> out(static_cast<std::size_t>(rows) * 32);
        for (int row = 0; row < rows; ++row) {
            for (int k = 0; k < 32 / each; ++k) {
                std::uint32_t address = start;
                if (k_major) {
                    if (start % row_bytes + 32 > row_bytes) fail("wgmma: step leaves its row");
                    address += row / 8 * group + row % 8 * row_bytes + k * each;
                } else {
                    const std::uint32_t run = static_cast<std::uint32_t>(row * each);
                    address += run / row_bytes * block + run % row_bytes + k / 8 * group +
                               k % 8 * row_bytes;
                }
                address = swizzled(address, static_cast<int>(row_bytes));
                const unsigned char* from = shared().at(address, each, each);
                if (address % 16 == 0) shared().check_fenced(address, 1);
                std::memcpy(&out[static_cast<std::size_t>(row) * 32 + k * each], from, each);
            }
        }
        return out;
    }

    void begin_for_warp(int warp_index, const Pointer& product) {
        Warp& warp = warp_[warp_index];
        const int w = warp_index % 4, words = product->form.N / 2;
        bool flying = false;
        const auto look = [&](const std::vector<Pointer>& group) {
            for (const Pointer& other : group) flying |= other->c[w * 32] == product->c[w * 32];
        };
        for (const auto& group : warp.groups) look(group);
        look(warp.open);
        if (!flying) {
            product->start[w].resize(32 * words);
            for (int l = 0; l < 32; ++l) {
                auto* c = static_cast<std::uint32_t*>(product->c[w * 32 + l]);
                std::memcpy(&product->start[w][l * words], c, words * 4);
                for (int i = 0; i < words; ++i) c[i] = poison;
            }
        }
        warp.open.push_back(product);
    }

    void finish(int warp_index, const std::vector<Pointer>& group, std::size_t index) {
        PendingProduct& product = *group[index];
        const ProductForm& form = product.form;
        const int w = warp_index % 4, words = form.N / 2;
        std::vector<std::uint32_t>& values = product.start[w];
        for (int l = 0; l < 32; ++l) {
            const auto* c = static_cast<const std::uint32_t*>(product.c[w * 32 + l]);
            for (int i = 0; i < words; ++i) {
                if (c[i] != poison) fail("wgmma: accumulators touched before the wait");
            }
            const std::uint32_t* a = product.a_registers[w * 32 + l];
            if (a != nullptr && std::memcmp(a, product.a_values[w * 32 + l], 16) != 0) {
                fail("wgmma: an operand in registers changed before the wait");
            }
        }
        switch (form.dtype) {
            case DType::bf16:
                multiply<float, DType::bf16>(product, w, values);
                break;
            case DType::f16:
                multiply<float, DType::f16>(product, w, values);
                break;
            default:
                multiply<std::int32_t, DType::u8>(product, w, values);
        }
        // The last warp's wait ends the reading of shared memory.
        if (++product.warps_done == 4) {
            if ((form.a_in_shared &&
                 operand(form.dtype, form.a, 64, form.a_k_major) != product.a_bytes) ||
                operand(form.dtype, form.b, form.N, form.b_k_major) != product.b_bytes) {
                fail("wgmma: an operand in shared memory changed before every warp's wait");
            }
        }
        PendingProduct* next = nullptr;
        const auto look = [&](const Pointer& other) {
            if (next == nullptr && other->c[w * 32] == product.c[w * 32]) next = other.get();
        };
        for (std::size_t i = index + 1; i < group.size(); ++i) look(group[i]);
        for (const auto& later : warp_[warp_index].groups) {
            for (const Pointer& other : later) look(other);
        }
        for (const Pointer& other : warp_[warp_index].open) look(other);
        if (next != nullptr) {
            if (next->form.N != form.N) fail("wgmma: a chain of products changes its width");
            next->start[w] = std::move(values);
            return;
        }
        for (int l = 0; l < 32; ++l) {
            std::memcpy(product.c[w * 32 + l], &values[l * words], words * 4);
        }
    }

    template <typename Sum, DType D>
    static void multiply(const PendingProduct& product, int w, std::vector<std::uint32_t>& values) {
        constexpr int depth = D == DType::u8 ? 32 : 16;
        const ProductForm& form = product.form;
        const auto element = [](const unsigned char* p, int k, bool is_signed) -> Sum {
            if constexpr (D == DType::u8) {
                return is_signed ? static_cast<std::int8_t>(p[k]) : p[k];
            } else {
                std::uint16_t bits;
                std::memcpy(&bits, p + 2 * k, 2);
                return widen<D>(bits);
            }
        };
        std::vector<Sum> b(static_cast<std::size_t>(form.N) * depth);
        for (int n = 0; n < form.N; ++n) {
            for (int k = 0; k < depth; ++k) {
                b[n * depth + k] = element(&product.b_bytes[n * 32], k, true);
            }
        }
        for (int row = 0; row < 16; ++row) {
            Sum a[depth];
            for (int k = 0; k < depth; ++k) {
                if (form.a_in_shared) {
                    a[k] = element(&product.a_bytes[(16 * w + row) * 32], k, false);
                } else {
                    const int thread = w * 32 + row % 8 * 4 + k % 8 / 2;
                    const std::uint32_t word = product.a_values[thread][k / 8 * 2 + row / 8];
                    const std::uint16_t bits = static_cast<std::uint16_t>(word >> (16 * (k % 2)));
                    a[k] = element(reinterpret_cast<const unsigned char*>(&bits), 0, false);
                }
            }
            for (int n = 0; n < form.N; ++n) {
                Sum sum = 0;
                for (int k = 0; k < depth; ++k) sum += a[k] * b[n * depth + k];
                const int l = row % 8 * 4 + n % 8 / 2;
                std::uint32_t& word = values[l * (form.N / 2) + n / 8 * 4 + row / 8 * 2 + n % 2];
                Sum before = 0;
                if (form.accumulate) std::memcpy(&before, &word, 4);
                before += sum;
                std::memcpy(&word, &before, 4);
            }
        }
    }

    Warp warp_[32];
};

inline Products& products() {
    static Products one;
    return one;
}
inline Products& products_exist = products();

}  // namespace emulation
