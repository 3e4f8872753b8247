// How prepared models execute what they are made of: products and work on rows, by one thread or by
// all of them together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/projection.h"
#include "cpu/threads.h"

namespace fastbert {

// The number of threads of a pass over weights that were packed for an instruction set; 0 is
// max_threads(). Throws where the set in use is another one, or the number none of the pool's.
int threads_of_pass(const char* owner, Isa packed_for, int threads);

// Rows that a projection multiplies.
struct Operand {
    const void* data = nullptr;
    DType dtype = DType::f32;
    index_t stride = 0;
    const float* scale = nullptr;              // u8 only
    const std::int32_t* zero_point = nullptr;  // u8 only
};

// Where operands are written that have to be converted first.
struct OperandRoom {
    char* rows = nullptr;
    float* scale = nullptr;
    std::int32_t* zero_point = nullptr;
};

// Bytes that OperandRoom::rows needs for `rows` rows of `width` columns before a projection.
index_t operand_room(const PackedProjection& p, index_t rows);

GemmArgs gemm_args(const PackedProjection& p, const Operand& x, index_t rows);

// The threads at work on something: the calling one, which then is one of many at work on different
// rows, or all together.
struct Team {
    const KernelTable& table;
    char* gemm_scratch;  // of thread 0; that of the next stands `scratch_step` bytes behind
    index_t scratch_step;
    int threads;  // 1: the calling thread alone, as `worker`
    int worker;

    // body(first, count, worker) over parts of [0, rows).
    template <class Body>
    void rows(index_t rows, Body&& body) const {
        if (threads == 1) return body(index_t{0}, rows, worker);
        const index_t parts = std::min<index_t>(threads, rows);
        parallel_for(parts, threads, [&](index_t part, int w) {
            const index_t first = rows * part / parts;
            body(first, rows * (part + 1) / parts - first, w);
        });
    }

    void gemm(const PackedProjection& p, const GemmArgs& args) const;

    // Rows of float32 or bfloat16 as the operand of a projection: themselves, or converted.
    Operand operand(const PackedProjection& p, const void* rows, DType dtype, index_t stride,
                    index_t count, const OperandRoom& room) const;
};

}  // namespace fastbert
