// Row quantisation is integer in its result, so every instruction set must give the same bytes.
#include "cpu/ops/quantize.h"

#include <algorithm>
#include <cmath>

#include "harness.h"

using namespace fastbert;

TEST(quantize_rows_matches_the_definition_on_every_isa) {
    for (index_t k : test::lengths) {
        const index_t rows = 3;
        const auto x = test::normal_values(rows * k, 11, 0.5f, 2.0f);
        test::for_each_isa([&](Isa isa) {
            std::vector<std::uint8_t> q(static_cast<std::size_t>(rows * k), 77);
            std::vector<float> scale(3, NAN);
            std::vector<std::int32_t> zero_point(3, -1);
            QuantizeArgs args;
            args.x = x.data();
            args.dtype = DType::f32;
            args.rows = rows;
            args.k = k;
            args.x_stride = k;
            args.q = q.data();
            args.q_stride = k;
            args.scale = scale.data();
            args.zero_point = zero_point.data();
            quantize_rows(args);
            for (index_t r = 0; r < rows; ++r) {
                float low = 0, high = 0;
                for (index_t i = 0; i < k; ++i) {
                    low = std::min(low, x[static_cast<std::size_t>(r * k + i)]);
                    high = std::max(high, x[static_cast<std::size_t>(r * k + i)]);
                }
                float s = (high - low) / 255.0f;
                if (s == 0) s = 1;
                const int z = static_cast<int>(std::nearbyint(-low / s));
                CHECK_MSG(scale[static_cast<std::size_t>(r)] == s, name_of(isa));
                CHECK_MSG(zero_point[static_cast<std::size_t>(r)] == z, name_of(isa));
                for (index_t i = 0; i < k; ++i) {
                    const std::size_t at = static_cast<std::size_t>(r * k + i);
                    const int want = static_cast<int>(std::nearbyint(x[at] / s)) + z;
                    CHECK_MSG(q[at] == std::min(std::max(want, 0), 255), name_of(isa));
                }
            }
        });
    }
}
