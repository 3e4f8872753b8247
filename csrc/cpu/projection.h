// Linear maps of a prepared model: as they are stored, and packed for the instruction set in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/types.h"
#include "cpu/aligned_bytes.h"
#include "cpu/ops/driver.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/params.h"
#include "cpu/ops/quantize.h"

namespace fastbert {

enum class Isa : int;  // cpu/isa.h

// How a projection is computed: on float32; on bfloat16 operands with float32 sums; on u8 rows
// and s8 weights with int32 sums; on rows of 16 bits and s8 weights, likewise.
enum class Precision : int { f32 = 0, bf16 = 1, int8 = 2, w8a16 = 3 };

// Whether the weights are s8.
constexpr bool quantised(Precision precision) {
    return precision == Precision::int8 || precision == Precision::w8a16;
}

// A linear map as it is stored: y = x W^T + bias. Read while the model is prepared, and not later,
// but for a bias in float32: every pass reads it in place, so it must outlive the prepared model.
struct ProjectionSource {
    static constexpr int kBiases = 3;

    const void* weight = nullptr;  // (n, k): f32, bf16 or f16, or s8 where the precision says so
    DType dtype = DType::f32;
    index_t n = 0, k = 0;
    index_t stride = 0;                   // elements between the rows of weight
    const float* weight_scale = nullptr;  // (n), s8 only
    // One, (n), or absent. Or three, (n / 3) each, of projections that are joined; whole panels
    // belong to each.
    Param bias[kBiases];
    Precision precision = Precision::f32;
    InputColumns columns;  // s8 only; k counts the weight's columns, repeated ones included
};

// A table whose rows are looked up, absent when data is null. Unlike a projection's weight it is
// read in place by every pass, so it must outlive the prepared model.
struct TableSource {
    const void* data = nullptr;  // (entries, width)
    index_t entries = 0;
    index_t stride = 0;  // elements between its rows
};

// y = x W^T + bias over packed weights.
struct PackedProjection {
    index_t n = 0, k = 0;
    index_t width = 0;  // of the rows it is applied to; k has the repeated columns besides
    Precision precision = Precision::f32;
    index_t packed_size = 0;               // bytes
    const std::uint8_t* packed = nullptr;  // in memory that outlives the projection
    bool streamed = false;                 // GemmArgs::streamed
    std::vector<float> weight_scale;       // (n), s8 only
    std::vector<Float32Param> biases;      // side by side they are (n); or none
    std::vector<float> factor;             // (width) or empty
    std::vector<std::int32_t> repeated;

    PackedProjection() = default;
    // `owner` and `what` name the model and the projection in error messages. The weights are still
    // to be packed.
    PackedProjection(const char* owner, const char* what, const ProjectionSource& source, index_t n,
                     index_t width);

    // From the same source, into packed_size bytes that outlive the projection.
    void pack(const ProjectionSource& source, char* into);

    const float* scale() const { return weight_scale.empty() ? nullptr : weight_scale.data(); }

    InputColumns columns() const {
        return {factor.empty() ? nullptr : factor.data(), repeated.data(), k - width};
    }

    DType operand_dtype() const;  // of the rows it is applied to
    GemmKernels::RangeFn range_of(const GemmKernels& gemm) const;
    index_t panels(const GemmKernels& gemm) const;
    // Bytes of scratch that range calls need for `rows` rows.
    index_t scratch_bytes(index_t rows, const GemmKernels& gemm) const;
};

// What the memory of a packed projection follows from; k counts repeated columns too.
struct ProjectionSize {
    index_t n = 0, k = 0;
    Precision precision = Precision::f32;
};

// The packed weights of one model, one after the other in one piece of memory, so that the smallest
// of them lies on huge pages too. Memory is taken page by page as it is written, so that what is
// still to be packed costs nothing.
class PackedMemory {
  public:
    // Room for projections of these sizes, in any order. Throws std::invalid_argument, or
    // std::bad_alloc.
    PackedMemory(const char* owner, const std::vector<ProjectionSize>& sizes);

    // Throws std::invalid_argument where no room is left for it, or the instruction set has
    // changed.
    void pack(PackedProjection& projection, const ProjectionSource& source);
    // Throws std::invalid_argument unless all was packed, and the instruction set is still the one
    // that it was packed for.
    void check_full() const;

    Isa isa() const { return isa_; }

  private:
    void check_isa() const;

    const char* owner_;
    Isa isa_;
    AlignedBytes bytes_;
    index_t room_ = 0, used_ = 0;
};

// A vector of parameters as float32.
std::vector<float> widened(const char* owner, const char* what, const Param& param, index_t size);

// Throws unless 1 <= size <= 2^20, the most that sizes of models may be.
void check_width(const char* owner, const char* what, index_t size);

// Bytes of a row of operands, as gemms like them.
index_t row_bytes(index_t width, DType dtype);

}  // namespace fastbert
