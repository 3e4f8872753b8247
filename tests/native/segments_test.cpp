// segment_sums against float64 and against one addition after the other, on every instruction set.
#include "cpu/ops/segments.h"

#include <cmath>

#include "cpu/threads.h"
#include "harness.h"

using namespace fastbert;
using test::Array;

namespace {

// Empty segments, rows before the first and behind the last, and one long segment.
const std::vector<std::int64_t> bounds = {1, 1, 2, 2, 7, 40, 40};
constexpr index_t rows = 43;
constexpr index_t segments = 6;

struct Problem {
    index_t columns;
    DType dtype;
    bool divided;
    bool misaligned;
};

void check_sums(const Problem& p, Isa isa) {
    const index_t stride = p.columns + 3;
    const Array x(p.dtype, test::normal_values(rows * stride, 1), p.misaligned);
    const std::vector<float> divisors = {1, 2, 1, 5.5f, 33, 1};
    Array out = Array::poisoned(DType::f32, segments * p.columns, p.misaligned);
    SegmentArgs args;
    args.x = x.data();
    args.bounds = bounds.data();
    args.divisors = p.divided ? divisors.data() : nullptr;
    args.out = static_cast<float*>(out.data());
    args.rows = rows;
    args.columns = p.columns;
    args.segments = segments;
    args.x_stride = stride;
    args.dtype = p.dtype;
    segment_sums(args);

    const auto xs = x.values(), got = out.values();
    for (index_t s = 0; s < segments; ++s) {
        const auto at = static_cast<std::size_t>(s);
        for (index_t c = 0; c < p.columns; ++c) {
            float want = 0;
            double exact = 0, magnitude = 0;
            for (std::int64_t row = bounds[at]; row < bounds[at + 1]; ++row) {
                const double value = xs[static_cast<std::size_t>(row * stride + c)];
                want += static_cast<float>(value);
                exact += value;
                magnitude += std::fabs(value);
            }
            if (p.divided) {
                want /= divisors[at];
                exact /= divisors[at];
                magnitude /= divisors[at];
            }
            const double found = got[static_cast<std::size_t>(s * p.columns + c)];
            const std::string where = std::string(name_of(isa)) + " columns " +
                                      std::to_string(p.columns) + " segment " + std::to_string(s);
            CHECK_MSG(found == static_cast<double>(want), where);
            CHECK_MSG(std::fabs(found - exact) <= 33 * 6e-8 * magnitude, where + " exact");
        }
    }
}

}  // namespace

TEST(segment_sums_add_one_row_after_the_other) {
    test::for_each_isa([](Isa isa) {
        for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
            for (index_t columns : test::lengths) {
                const bool odd = columns % 2 != 0;
                check_sums({columns, dtype, odd, odd}, isa);
                check_sums({columns, dtype, !odd, odd}, isa);
            }
        }
    });
}

TEST(segment_sums_do_not_depend_on_threads) {
    const int before = max_threads();
    for (int threads : {1, 2, 5}) {
        set_max_threads(threads);
        check_sums({769, DType::bf16, true, false}, active());
    }
    set_max_threads(before);
}

TEST(segment_sums_refuse_what_does_not_fit) {
    const std::vector<float> x(12, 1);
    std::vector<float> out(8);
    const auto message = [&](std::vector<std::int64_t> at, index_t stride = 4) {
        return test::message_of([&] {
            SegmentArgs args;
            args.x = x.data();
            args.bounds = at.empty() ? nullptr : at.data();
            args.out = out.data();
            args.rows = 3;
            args.columns = 4;
            args.x_stride = stride;
            args.segments = 2;
            segment_sums(args);
        });
    };
    CHECK(message({0, 1, 3}).empty());
    CHECK(message({0, 2, 1}).find("bounds[2] is 1") != std::string::npos);
    CHECK(message({0, 2, 4}).find("bounds[2] is 4") != std::string::npos);
    CHECK(message({-1, 2, 3}).find("bounds[0] is -1") != std::string::npos);
    CHECK(message({}).find("bounds is missing") != std::string::npos);
    CHECK(!message({0, 1, 3}, 3).empty());
}
