// What packed weights refuse, in a sentence: a wrong block never reaches a kernel.
#include <functional>
#include <string>

#include "gemm_case.h"
#include "harness.h"

namespace fastbert::testing {
namespace {

bool says(const std::string& message, const char* words) {
    return message.find(words) != std::string::npos;
}

struct Fixture {
    std::vector<float> w = std::vector<float>(20 * 10, 1.0f);
    std::vector<float> x = std::vector<float>(4 * 10, 1.0f);
    std::vector<float> out = std::vector<float>(4 * 20, 0.0f);
    Packed packed = pack(w.data(), DType::f32, 20, 10, 10);
    GemmArgs args() {
        GemmArgs g;
        g.rows = 4;
        g.n = 20;
        g.k = 10;
        g.x = x.data();
        g.x_stride = 10;
        g.packed = packed.data();
        g.out = out.data();
        g.out_stride = 20;
        return g;
    }
};

TEST(packed_weights_are_checked) {
    Fixture f;
    const auto check = [&](index_t bytes, index_t n, index_t k) {
        return test::message_of([&] { packed_check(f.packed.data(), bytes, n, k); });
    };
    const index_t bytes = f.packed.bytes;
    CHECK(check(bytes, 20, 10).empty());
    CHECK(says(check(bytes, 21, 10), "shape"));
    CHECK(says(check(bytes, 20, 11), "shape"));
    CHECK(says(check(bytes - 1, 20, 10), "bytes"));
    CHECK(says(check(63, 20, 10), "linear_prepack"));
    CHECK(says(test::message_of([] { packed_check(nullptr, 1000, 20, 10); }), "linear_prepack"));
    for (std::size_t at : {0u, 8u, 12u, 16u, 20u, 24u, 32u, 40u}) {
        std::uint8_t& byte = f.packed.data()[at];
        byte ^= 0x41;
        CHECK(!check(bytes, 20, 10).empty());
        byte ^= 0x41;
    }
    CHECK(check(bytes, 20, 10).empty());
}

TEST(packed_for_another_instruction_set_is_refused) {
    const auto usable = usable_isas();
    for (Isa from : usable) {
        set_active(from);
        Fixture f;
        for (Isa to : usable) {
            set_active(to);
            const auto &a = kernels(from).gemm.f32, &b = kernels(to).gemm.f32;
            const std::string message =
                test::message_of([&] { packed_check(f.packed.data(), f.packed.bytes, 20, 10); });
            CHECK(a.columns == b.columns ? message.empty()
                                         : says(message, "another instruction set"));
        }
    }
    set_active(usable.back());
}

TEST(products_refuse_what_does_not_fit) {
    Fixture f;
    const auto attempt = [&](const std::function<void(GemmArgs&)>& spoil) {
        GemmArgs g = f.args();
        spoil(g);
        return test::message_of([&] { linear(g, f.packed.bytes); });
    };
    CHECK(attempt([](GemmArgs&) {}).empty());
    CHECK(says(attempt([](GemmArgs& g) { g.x_dtype = DType::bf16; }), "bfloat16"));
    CHECK(says(attempt([](GemmArgs& g) { g.x_dtype = DType(77); }), "unknown"));
    CHECK(says(attempt([](GemmArgs& g) { g.out_dtype = DType::i32; }), "float16"));
    CHECK(says(attempt([](GemmArgs& g) { g.x_stride = 9; }), "stride"));
    CHECK(says(attempt([](GemmArgs& g) { g.x_stride = -10; }), "stride"));
    CHECK(says(attempt([](GemmArgs& g) { g.out_stride = 19; }), "stride"));
    CHECK(says(attempt([](GemmArgs& g) { g.rows = -1; }), "rows"));
    CHECK(says(attempt([](GemmArgs& g) { g.rows = index_t{1} << 62; }), "rows"));
    CHECK(says(attempt([](GemmArgs& g) { g.x = nullptr; }), "null"));
    CHECK(says(attempt([](GemmArgs& g) { g.activation = Activation(9); }), "activation"));
    CHECK(says(test::message_of([&] { int8_linear(f.args(), f.packed.bytes); }), "use linear"));
    CHECK(says(test::message_of([] { packed_bytes(active_kernels().gemm, DType::f32, 0, 4); }),
               "at least 1"));
    CHECK(says(test::message_of([] { packed_bytes(active_kernels().gemm, DType::f16, 4, 4); }),
               "float16"));
    CHECK(says(
        test::message_of([] { packed_bytes(active_kernels().gemm, DType::s8, 4, kMaxInt8K + 1); }),
        "int32"));
    CHECK(says(test::message_of([] {
                   packed_bytes(active_kernels().gemm, DType::f32, index_t{1} << 39, 1 << 20);
               }),
               "2^40"));
}

}  // namespace
}  // namespace fastbert::testing
