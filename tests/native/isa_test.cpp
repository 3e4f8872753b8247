#include "cpu/isa.h"

#include <cstdlib>

#include "harness.h"
#include "isa_table.h"

using namespace fastbert;

TEST(isa_names_round_trip) {
    for (Isa isa :
         {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx}) {
        CHECK(isa_from_name(name_of(isa)) == isa);
    }
    const std::string message = test::message_of([] { isa_from_name("sse9"); });
    CHECK_MSG(message.find("sse9") != std::string::npos &&
                  message.find("scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx") !=
                      std::string::npos,
              message);
}

// Sets build on one another, so usable ones form an unbroken run from scalar on.
TEST(isa_usable_sets_are_nested) {
    const auto usable = usable_isas();
    CHECK(!usable.empty() && usable.front() == Isa::scalar);
    for (std::size_t i = 0; i < usable.size(); ++i) {
        CHECK(static_cast<std::size_t>(usable[i]) == i);
        CHECK(missing_for(usable[i]).empty());
        CHECK(kernels(usable[i]).vec_math.lanes >= 1);
    }
}

TEST(isa_detected_is_the_last_usable_one_that_is_not_microcode) {
    Isa last = usable_isas().back();
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (last == Isa::avx512_bf16 && __builtin_cpu_is("intel")) last = Isa::avx512_vnni;
#endif
    CHECK(detected() == last);
}

#if defined(__x86_64__)
// The compiler's own run-time check, an independent reading of cpuid and XCR0, must agree.
TEST(isa_predicate_agrees_with_the_compiler) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    // Only what asked for it may use the tiles: with the processor's word, the rest is the
    // system's.
    const bool amx = bf16 && __builtin_cpu_supports("amx-tile") &&
                     __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
                     missing_for(Isa::amx).empty();
    const bool expected[] = {true, avx2, avx512, vnni, bf16, amx};
#define ROW(name, mask) \
    CHECK(missing_for(Isa::name).empty() == expected[static_cast<int>(Isa::name)]);
    FASTBERT_COMPILED_ISAS(ROW)
#undef ROW
}
#endif

TEST(isa_that_cannot_run_is_refused_with_what_is_missing) {
    for (Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx}) {
        const std::string missing = missing_for(isa);
        const std::string message = test::message_of([&] { set_active(isa); });
        CHECK_MSG(missing.empty() == message.empty(), message);
        CHECK_MSG(message.find(missing) != std::string::npos, message);
    }
    set_active(detected());
}
