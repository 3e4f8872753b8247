// depthwise_conv and channel_gate against their definitions, on every instruction set. Under the
// sanitizers: nothing is read or written beside the maps.
#include <cmath>

#include "cpu/ops/channel_gate.h"
#include "cpu/ops/depthwise_conv.h"
#include "harness.h"

using namespace fastbert;
using test::Array;

namespace {

constexpr DType dtypes[] = {DType::f32, DType::bf16, DType::f16};

double tolerance(DType dtype) { return dtype == DType::f32 ? 1e-5 : 4e-2; }

struct Problem {
    index_t batch, height, width, channels, kernel, stride, before, after;
};

// One output, without the bias.
double convolved(const Problem& p, const std::vector<double>& x, const std::vector<double>& w,
                 index_t image, index_t row, index_t column, index_t c) {
    double sum = 0;
    for (index_t i = 0; i < p.kernel; ++i) {
        for (index_t j = 0; j < p.kernel; ++j) {
            const index_t y = row * p.stride - p.before + i, z = column * p.stride - p.before + j;
            if (y < 0 || y >= p.height || z < 0 || z >= p.width) continue;
            const index_t at = ((image * p.height + y) * p.width + z) * p.channels + c;
            sum += x[static_cast<std::size_t>(at)] *
                   w[static_cast<std::size_t>((i * p.kernel + j) * p.channels + c)];
        }
    }
    return sum;
}

void check_depthwise(const Problem& p, DType dtype) {
    const Array x(dtype, test::normal_values(p.batch * p.height * p.width * p.channels, 1), true);
    const Array w(dtype, test::normal_values(p.kernel * p.kernel * p.channels, 2), true);
    const Array bias(dtype, test::normal_values(p.channels, 3), true);
    DepthwiseArgs args;
    args.batch = p.batch, args.height = p.height, args.width = p.width;
    args.channels = p.channels, args.kernel = p.kernel, args.stride = p.stride;
    args.before = p.before, args.after = p.after, args.dtype = dtype;
    args.activation = Activation::relu;
    const index_t rows = depthwise_extent(args, p.height),
                  columns = depthwise_extent(args, p.width);
    Array out = Array::poisoned(dtype, p.batch * rows * columns * p.channels, true);
    Array means = Array::poisoned(DType::f32, p.batch * p.channels, true);
    args.x = x.data(), args.out = out.data(), args.means = static_cast<float*>(means.data());
    args.weight = {w.data(), dtype}, args.bias = {bias.data(), dtype};
    depthwise_conv(args);

    const auto xs = x.values(), ws = w.values(), bs = bias.values();
    const auto got = out.values(), got_means = means.values();
    for (index_t image = 0; image < p.batch; ++image) {
        for (index_t c = 0; c < p.channels; ++c) {
            double mean = 0;
            for (index_t y = 0; y < rows; ++y) {
                for (index_t z = 0; z < columns; ++z) {
                    const double want = std::fmax(0.0, convolved(p, xs, ws, image, y, z, c) +
                                                           bs[static_cast<std::size_t>(c)]);
                    const index_t at = ((image * rows + y) * columns + z) * p.channels + c;
                    const double found = got[static_cast<std::size_t>(at)];
                    CHECK(std::fabs(found - want) <= tolerance(dtype) * (1 + std::fabs(want)));
                    mean += want / static_cast<double>(rows * columns);
                }
            }
            const double found = got_means[static_cast<std::size_t>(image * p.channels + c)];
            CHECK(std::fabs(found - mean) <= 1e-5 * (1 + mean));
        }
    }
}

TEST(depthwise_conv_is_its_definition) {
    const Problem problems[] = {{2, 5, 9, 17, 3, 1, 1, 1},
                                {1, 7, 6, 35, 5, 2, 1, 2},
                                {1, 1, 1, 3, 5, 1, 2, 2},
                                {1, 3, 19, 66, 3, 2, 0, 1},
                                {0, 4, 4, 8, 3, 1, 1, 1}};
    test::for_each_isa([&](Isa) {
        for (const Problem& p : problems) {
            for (DType dtype : dtypes) check_depthwise(p, dtype);
        }
    });
}

TEST(depthwise_conv_refuses_what_does_not_fit) {
    const auto refused = [](const Problem& p) {
        return test::message_of([&] { check_depthwise(p, DType::f32); });
    };
    CHECK(refused({1, 5, 5, 4, 4, 1, 1, 1}).find("kernel must be 3 or 5") != std::string::npos);
    CHECK(refused({1, 5, 5, 4, 3, 3, 1, 1}).find("stride must be 1 or 2") != std::string::npos);
    CHECK(refused({1, 5, 5, 4, 3, 1, 3, 1}).find("before must be from 0") != std::string::npos);
    CHECK(refused({1, 2, 5, 4, 3, 1, 0, 0}).find("does not fit") != std::string::npos);
}

TEST(channel_gate_is_its_definition) {
    constexpr index_t batch = 3, places = 5, channels = 37;
    test::for_each_isa([&](Isa) {
        for (DType dtype : dtypes) {
            const Array x(dtype, test::normal_values(batch * places * channels, 4), true);
            const Array gates(dtype, test::normal_values(batch * channels, 5), true);
            Array out = Array::poisoned(dtype, batch * places * channels, true);
            GateArgs args;
            args.x = x.data(), args.gates = gates.data(), args.out = out.data();
            args.batch = batch, args.places = places, args.channels = channels, args.dtype = dtype;
            channel_gate(args);
            const auto xs = x.values(), gs = gates.values(), got = out.values();
            for (index_t i = 0; i < batch * places * channels; ++i) {
                const index_t gate = i / (places * channels) * channels + i % channels;
                const double want = xs[static_cast<std::size_t>(i)] /
                                    (1 + std::exp(-gs[static_cast<std::size_t>(gate)]));
                CHECK(std::fabs(got[static_cast<std::size_t>(i)] - want) <=
                      tolerance(dtype) * (1 + std::fabs(want)));
            }
        }
    });
}

}  // namespace
