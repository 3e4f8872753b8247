// A test is a TEST(name) { ... } in any tests/native/*.cpp; CMake finds the file, main() the test.
// A failed CHECK is reported and the test goes on, so that one run shows all that is wrong.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace test {

using fastbert::index_t;

using TestFn = void (*)();
bool add_test(const char* name, TestFn fn);
void report_failure(const char* file, int line, const std::string& what);

#define TEST(name)                                                       \
    static void test_##name();                                           \
    static const bool added_##name = test::add_test(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) test::report_failure(__FILE__, __LINE__, #condition); \
    } while (false)

// `details` is only evaluated on failure.
#define CHECK_MSG(condition, details)                                                             \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            test::report_failure(__FILE__, __LINE__, #condition + (": " + std::string(details))); \
        }                                                                                         \
    } while (false)

// Runs body(isa) with every instruction set of this machine made active in turn. What is the same
// for all of them, as operands and float64 references are, is better made once, outside of it.
template <typename Body>
void for_each_isa(Body&& body) {
    struct Restored {
        ~Restored() { fastbert::set_active(fastbert::detected()); }
    } restored;  // where body throws, too
    for (fastbert::Isa isa : fastbert::usable_isas()) {
        fastbert::set_active(isa);
        body(isa);
    }
}

// The message with which fn() threw, "" if it did not.
template <typename Fn>
std::string message_of(Fn&& fn) {
    try {
        fn();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

// Deterministic normal values, mean + std * n(0, 1).
std::vector<float> normal_values(index_t n, unsigned seed, float mean = 0, float std = 1);

// Values of one of the float dtypes in a buffer of exactly their size (so that a sanitizer sees any
// access outside), optionally shifted by one element from any alignment.
class Array {
  public:
    Array(fastbert::DType dtype, const std::vector<float>& values, bool misaligned = false);
    // n NaNs: whatever is not written stays visible.
    static Array poisoned(fastbert::DType dtype, index_t n, bool misaligned = false);

    void* data() { return bytes_.data() + offset_; }
    const void* data() const { return bytes_.data() + offset_; }
    std::vector<double> values() const;  // widened exactly
    index_t size() const { return size_; }

  private:
    fastbert::DType dtype_;
    index_t size_;
    index_t offset_;
    std::vector<std::uint8_t> bytes_;
};

// Lengths around every vector width, and primes.
inline const std::vector<index_t> lengths = {0,  1,  2,  3,  7,  8,  9,  15,  16,  17, 31,
                                             32, 33, 63, 64, 65, 67, 97, 127, 384, 769};

// Half a unit in the last place of 1 for a dtype.
double unit_roundoff(fastbert::DType dtype);

}  // namespace test
