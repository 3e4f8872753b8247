#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <limits>
#include <utility>

namespace test {
namespace {

std::vector<std::pair<std::string, TestFn>>& tests() {
    static std::vector<std::pair<std::string, TestFn>> all;
    return all;
}

int failures_of_current = 0;

}  // namespace

bool add_test(const char* name, TestFn fn) {
    tests().emplace_back(name, fn);
    return true;
}

void report_failure(const char* file, int line, const std::string& what) {
    // The first ones tell; a wrong kernel would print thousands.
    if (++failures_of_current <= 10) std::printf("%s:%d: failed: %s\n", file, line, what.c_str());
}

std::vector<float> normal_values(index_t n, unsigned seed, float mean, float std) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(mean, std);
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = normal(generator);
    return values;
}

Array::Array(fastbert::DType dtype, const std::vector<float>& values, bool misaligned)
    : dtype_(dtype),
      size_(static_cast<index_t>(values.size())),
      offset_(misaligned ? fastbert::size_of(dtype) : 0),
      bytes_(static_cast<std::size_t>(size_ * fastbert::size_of(dtype) + offset_)) {
    const auto& scalar = fastbert::kernels(fastbert::Isa::scalar).vec_math;
    scalar.narrow[static_cast<int>(dtype)](values.data(), data(), size_);
}

Array Array::poisoned(fastbert::DType dtype, index_t n, bool misaligned) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return Array(dtype, std::vector<float>(static_cast<std::size_t>(n), nan), misaligned);
}

std::vector<double> Array::values() const {
    std::vector<float> widened(static_cast<std::size_t>(size_));
    const auto& scalar = fastbert::kernels(fastbert::Isa::scalar).vec_math;
    scalar.widen[static_cast<int>(dtype_)](data(), widened.data(), size_);
    return {widened.begin(), widened.end()};
}

double unit_roundoff(fastbert::DType dtype) {
    return dtype == fastbert::DType::bf16  ? std::ldexp(1.0, -9)
           : dtype == fastbert::DType::f16 ? std::ldexp(1.0, -12)
                                           : std::ldexp(1.0, -25);
}

}  // namespace test

// With arguments: only the tests whose name contains one of them. --durations, before the names,
// also says how long each took, the longest last.
int main(int argc, char** argv) {
    const bool with_durations = argc > 1 && std::strcmp(argv[1], "--durations") == 0;
    const int first_name = with_durations ? 2 : 1;
    std::vector<std::pair<double, std::string>> durations;
    int passed = 0, failed = 0;
    for (const auto& [name, fn] : test::tests()) {
        bool wanted = argc == first_name;
        for (int i = first_name; i < argc; ++i) wanted |= name.find(argv[i]) != std::string::npos;
        if (!wanted) continue;
        test::failures_of_current = 0;
        const std::clock_t start = std::clock();
        try {
            fn();
        } catch (const std::exception& error) {
            test::report_failure(name.c_str(), 0, std::string("unexpected: ") + error.what());
        }
        durations.emplace_back(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, name);
        const int failures = test::failures_of_current;
        if (failures > 0) std::printf("FAILED %s (%d checks)\n", name.c_str(), failures);
        (failures > 0 ? failed : passed) += 1;
    }
    std::sort(durations.begin(), durations.end());
    if (with_durations) {
        for (const auto& [seconds, name] : durations) {
            std::printf("%8.2f s of CPU time  %s\n", seconds, name.c_str());
        }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
