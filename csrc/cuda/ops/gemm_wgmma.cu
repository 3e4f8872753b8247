// Products on wgmma (sm_90a): one thread starts bulk tensor copies into a ring of stages,
// warpgroups multiply from it and finish their tiles, and a block stays while there are tiles.
//
// A slab is 128 bytes of K, the span of the swizzle: two 64-byte halves would double the barriers.
// Every accumulator takes k in ascending steps of 32 bytes, whatever the tile; the copy engine
// fills zeros beyond rows and K. Three shapes of block:
//   128 x 256  two warpgroups multiply 64 x 256 each: fewest operand bytes per operation
//    64 x 64   one warpgroup; two blocks on a multiprocessor, for few rows
//   128 x 128  8-bit operands with K up to 1024: the slabs of 128 weight rows stay in shared memory
//              while x streams past, and each warpgroup has its own tile, so that one multiplies
//              while the other finishes. At that depth an exact GELU costs about what its product
//              does; done one after the other, half of the machine would be idle.
#include "common/check.h"
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/families.h"
#include "cuda/ptx.cuh"

// One file serves every architecture; only sm_90a has the instructions (and the tests' emulation).
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define FASTBERT_HAS_WGMMA
#endif

namespace fastbert::cuda {

namespace {

constexpr int slab_bytes = 128;
constexpr int step_bytes = 32;  // of K in one wgmma
constexpr int steps = slab_bytes / step_bytes;
constexpr int group_bytes = 8 * slab_bytes;  // eight rows: what a swizzle permutes
constexpr int staged_columns = 64;           // of a tile that go through the epilogue at a time
constexpr int max_resident_slabs = static_cast<int>(max_resident_depth) / slab_bytes;

// How a block works. Warpgroups of 128 threads come first, the producer last.
template <DType OPERANDS, int BLOCKS, int COLUMNS, int WARPGROUPS, bool RESIDENT>
struct Form {
    static constexpr DType operands = OPERANDS;
    using Accumulator = std::conditional_t<OPERANDS == DType::u8, std::int32_t, float>;
    static constexpr int slab_elements = slab_bytes / static_cast<int>(size_of(OPERANDS));
    static constexpr int blocks = BLOCKS;  // of 64 rows per warpgroup
    static constexpr int columns = COLUMNS;
    static constexpr int warpgroups = WARPGROUPS;
    static constexpr bool resident = RESIDENT;  // of the weight; then a tile has one warpgroup
    static constexpr int own_rows = 64 * BLOCKS;
    static constexpr int rows = RESIDENT ? own_rows : own_rows * WARPGROUPS;
    // Registers move between warpgroups, so the producer fills one where they do.
    static constexpr bool moves_registers = WARPGROUPS > 1;
    static constexpr int threads = 128 * WARPGROUPS + (moves_registers ? 128 : 32);
    static constexpr int a_bytes = rows * slab_bytes;
    static constexpr int b_bytes = COLUMNS * slab_bytes;
    static constexpr int stages = WARPGROUPS == 1 ? 5 : 4;
    static constexpr int b_slots = RESIDENT ? max_resident_slabs : stages;
    // Where things lie in shared memory.
    static constexpr int a_at = 0;
    static constexpr int b_at = a_at + stages * a_bytes;
    static constexpr int staged_at = b_at + b_slots * b_bytes;
    static constexpr int staged_bytes = 64 * staged_columns * 4;  // per warpgroup
    static constexpr int barriers_at = staged_at + WARPGROUPS * staged_bytes;
    static constexpr int shared_bytes =
        barriers_at + 8 * (2 * stages + (RESIDENT ? b_slots + WARPGROUPS : 0));
    static_assert(shared_bytes <= 232448, "a block has 227 KB of shared memory");
};

// Barriers in shared memory.
template <typename F>
struct Barriers {
    std::uint32_t base;

    __device__ std::uint32_t full(int stage) const { return base + 8 * stage; }
    __device__ std::uint32_t empty(int stage) const { return base + 8 * (F::stages + stage); }
    // Of a resident slab of the weight.
    __device__ std::uint32_t kept(int slab) const { return base + 8 * (2 * F::stages + slab); }
    // That a warpgroup may start on its next tile.
    __device__ std::uint32_t turn(int warpgroup) const { return kept(F::b_slots + warpgroup); }
};

// A place in the ring of stages; the parity is that of the barriers' current phase.
template <int stages>
struct Place {
    int stage = 0;
    int parity = 0;

    __device__ void advance() {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
    // As if advance() had been called `count` times.
    __device__ void skip(int count) {
        const int reached = stage + count;
        parity ^= reached / stages & 1;
        stage = reached % stages;
    }
};

// The tiles of a block, in the order in which it takes them. Where the weight is resident, a
// block's tiles follow each other down a column, so that it seldom needs other rows of the weight.
template <typename F>
struct Walk {
    TileOrder order;
    int first;
    int end;
    int step;

    __device__ explicit Walk(const TileOrder& order) : order(order) {
        const int tiles = order.tiles_m * order.tiles_n;
        const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
        if (F::resident) {
            const int each = tiles / blocks, more = tiles % blocks;
            first = block * each + (block < more ? block : more);
            end = first + each + (block < more ? 1 : 0);
            step = 1;
        } else {
            first = block;
            end = tiles;
            step = blocks;
        }
    }
    __device__ TileOrder::Place at(int tile) const {
        if (F::resident) return {tile % order.tiles_m, tile / order.tiles_m};
        return order.at(tile);
    }
};

// The thread that keeps the ring full.
template <typename F>
__device__ void produce(const TensorMap* x, const TensorMap* weight, const Walk<F>& walk, int slabs,
                        std::uint32_t shared, const Barriers<F>& barriers) {
    ptx::prefetch(x);
    ptx::prefetch(weight);
    Place<F::stages> place;
    int kept_column = -1;
    for (int tile = walk.first; tile < walk.end; tile += walk.step) {
        const TileOrder::Place at = walk.at(tile);
        const bool fetch_weight = !F::resident || at.n != kept_column;
        if (F::resident && fetch_weight && kept_column >= 0) {
            // Every stage released: all products with the weight that is there have ended.
            Place<F::stages> drained = place;
            for (int s = 0; s < F::stages; ++s) {
                ptx::barrier_wait(barriers.empty(drained.stage), drained.parity ^ 1);
                drained.advance();
            }
        }
        kept_column = at.n;
        for (int slab = 0; slab < slabs; ++slab) {
            const int k = slab * F::slab_elements;
            if (F::resident && fetch_weight) {
                const std::uint32_t kept = barriers.kept(slab);
                ptx::barrier_arrive_expecting(kept, F::b_bytes);
                ptx::load_box(shared + F::b_at + slab * F::b_bytes, weight, kept, k,
                              at.n * F::columns);
            }
            ptx::barrier_wait(barriers.empty(place.stage), place.parity ^ 1);
            const std::uint32_t full = barriers.full(place.stage);
            ptx::barrier_arrive_expecting(full, F::a_bytes + (F::resident ? 0 : F::b_bytes));
            ptx::load_box(shared + F::a_at + place.stage * F::a_bytes, x, full, k, at.m * F::rows);
            if (!F::resident) {
                ptx::load_box(shared + F::b_at + place.stage * F::b_bytes, weight, full, k,
                              at.n * F::columns);
            }
            place.advance();
        }
    }
}

// A descriptor of what lies so many bytes behind what it describes: its lowest bits are an address
// in units of 16 bytes. Made anew for every step it would cost the warps more than their products
// do.
__device__ inline std::uint64_t further(std::uint64_t descriptor, int bytes) {
    const std::uint32_t low = static_cast<std::uint32_t>(descriptor) + (bytes >> 4);
    return descriptor >> 32 << 32 | low;
}

// What a warpgroup does: all the tiles of the block, or every other one where each has its own.
template <typename F>
__device__ void consume(const Walk<F>& walk, int slabs, std::uint32_t shared,
                        const Barriers<F>& barriers, const Epilogue& epilogue) {
    using Accumulator = typename F::Accumulator;
    using Multiply = ptx::WarpgroupMma<F::operands, F::columns>;
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / 128);
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int row_of_thread = thread / 32 * 16 + thread % 32 / 4;
    const int first_own_row = F::resident ? 0 : warpgroup * F::own_rows;
    auto* staged = reinterpret_cast<Accumulator*>(ptx::dynamic_shared() + F::staged_at +
                                                  warpgroup * F::staged_bytes);
    const std::uint64_t first_a =
        ptx::describe<slab_bytes>(shared + F::a_at + first_own_row * slab_bytes, group_bytes);
    const std::uint64_t first_b = ptx::describe<slab_bytes>(shared + F::b_at, group_bytes);
    Place<F::stages> place;
    int kept_column = -1, kept_parity = 1;
    // The first warpgroup's first turn has, so to say, already come.
    int turn_parity = warpgroup == 0 ? 1 : 0;
    for (int tile = walk.first, count = 0; tile < walk.end; tile += walk.step, ++count) {
        const TileOrder::Place at = walk.at(tile);
        if (at.n != kept_column) {
            kept_column = at.n;
            kept_parity ^= 1;
        }
        if (F::resident && count % F::warpgroups != warpgroup) {
            place.skip(slabs);
            continue;
        }
        if (F::resident) {
            // The warpgroup before has all its slabs: no stage is more than one phase behind the
            // one that is waited for now, so parities cannot be mistaken. It also puts all its
            // products before all of ours, where taking turns would delay both.
            ptx::barrier_wait(barriers.turn(warpgroup), turn_parity);
            turn_parity ^= 1;
        }
        Accumulator sums[F::blocks][F::columns / 2];
        int previous = 0;
#pragma unroll 1
        for (int slab = 0; slab < slabs; ++slab) {
            ptx::barrier_wait(barriers.full(place.stage), place.parity);
            // After the wait above: the slab was asked for later than this part of the weight.
            if (F::resident) ptx::barrier_wait(barriers.kept(slab), kept_parity);
            const std::uint64_t a = further(first_a, place.stage * F::a_bytes);
            const std::uint64_t b =
                further(first_b, (F::resident ? slab : place.stage) * F::b_bytes);
            ptx::products_fence();
#pragma unroll
            for (int step = 0; step < steps; ++step) {
                const int k = step * step_bytes;
#pragma unroll
                for (int block = 0; block < F::blocks; ++block) {
                    Multiply::issue(sums[block], further(a, block * 64 * slab_bytes + k),
                                    further(b, k), slab > 0 || step > 0);
                }
            }
            ptx::products_commit();
            // The slab before this one has been read.
            ptx::products_wait<1>();
            if (slab > 0 && thread % 32 == 0) ptx::barrier_arrive(barriers.empty(previous));
            previous = place.stage;
            place.advance();
        }
        if (F::resident && thread == 0) {
            ptx::barrier_arrive(barriers.turn((warpgroup + 1) % F::warpgroups));
        }
        ptx::products_wait<0>();
        if (thread % 32 == 0) ptx::barrier_arrive(barriers.empty(previous));

        constexpr int parts = F::columns / staged_columns;
        Finish<F::operands, 64, staged_columns, 128> finish{epilogue, thread};
#pragma unroll 1
        for (int part = 0; part < F::blocks * parts; ++part) {
            const int block = part % F::blocks, strip = part / F::blocks;
            if (block == 0) {
                finish.prepare_columns(static_cast<index_t>(at.n) * F::columns +
                                       strip * staged_columns);
            }
            finish.prepare_row(static_cast<index_t>(at.m) * F::rows + first_own_row + block * 64);
            // Everybody has read the part before.
            ptx::named_barrier(1 + warpgroup, 128);
#pragma unroll
            for (int p = 0; p < F::blocks * parts; ++p) {
                // Registers are named at compile time: one branch of these is taken.
                if (p != part) continue;
#pragma unroll
                for (int j = 0; j < staged_columns / 8; ++j) {
                    const Accumulator* four = &sums[p % F::blocks][(p / F::blocks * 8 + j) * 4];
                    const int column = 8 * j + thread % 4 * 2;
                    stage_pair<staged_columns>(staged, row_of_thread, column, four[0], four[1]);
                    stage_pair<staged_columns>(staged, row_of_thread + 8, column, four[2], four[3]);
                }
            }
            ptx::named_barrier(1 + warpgroup, 128);
            finish.run(staged);
        }
    }
}

template <typename F>
__global__ void __launch_bounds__(F::threads, 1)
    gemm_wgmma_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                      TileOrder order, int slabs, Epilogue epilogue) {
#ifdef FASTBERT_HAS_WGMMA
    const std::uint32_t shared = ptx::shared_address(ptx::dynamic_shared());
    const Barriers<F> barriers{shared + F::barriers_at};
    if (threadIdx.x == 0) {
        // A stage is full when its bytes are there, empty when every warp whose products read it
        // has seen them end.
        for (int stage = 0; stage < F::stages; ++stage) {
            ptx::barrier_init(barriers.full(stage), 1);
            ptx::barrier_init(barriers.empty(stage), F::resident ? 4 : 4 * F::warpgroups);
        }
        for (int slab = 0; F::resident && slab < F::b_slots; ++slab) {
            ptx::barrier_init(barriers.kept(slab), 1);
        }
        for (int w = 0; F::resident && w < F::warpgroups; ++w) {
            ptx::barrier_init(barriers.turn(w), 1);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 128 * F::warpgroups) {
        if constexpr (F::moves_registers) ptx::drop_registers<40>();
        if (threadIdx.x == 128 * F::warpgroups) {
            produce<F>(&x, &weight, Walk<F>(order), slabs, shared, barriers);
        }
    } else {
        if constexpr (F::moves_registers) ptx::raise_registers<232>();
        consume<F>(Walk<F>(order), slabs, shared, barriers, epilogue);
    }
#endif
}

// A matrix as boxes of box_rows x one slab.
TensorMap boxes(const void* data, DType dtype, index_t rows, index_t depth, index_t stride,
                int box_rows) {
    TensorShape shape;
    shape.data = data;
    shape.dtype = dtype;
    shape.size[0] = depth;
    shape.size[1] = rows;
    // A single row's stride is never used and may be anything; the engine still checks it.
    shape.stride[1] = rows == 1 ? depth : stride;
    shape.box[0] = slab_bytes / static_cast<int>(size_of(dtype));
    shape.box[1] = box_rows;
    return tensor_map("gemm", shape);
}

template <typename F>
void run(const Gemm& args, const GemmConfig& config, int multiprocessors, void* stream) {
    const TensorMap x = boxes(args.x, F::operands, args.rows, args.depth, args.x_stride, F::rows);
    const TensorMap weight =
        boxes(args.weight, F::operands, args.width, args.depth, args.weight_stride, F::columns);
    const TileOrder order{config.tiles_m, config.tiles_n};
    const int bytes = static_cast<int>(args.depth * size_of(F::operands));
    const int slabs = (bytes + slab_bytes - 1) / slab_bytes;
    const int at_once = multiprocessors * (F::warpgroups == 1 ? 2 : 1);
    const int tiles = config.tiles_m * config.tiles_n;
    const dim3 grid(static_cast<unsigned>(tiles < at_once ? tiles : at_once));
    start_shared(gemm_wgmma_kernel<F>, grid, F::threads, F::shared_bytes, stream, x, weight, order,
                 slabs, args.epilogue);
}

template <DType D>
void run_form(const Gemm& args, const GemmConfig& config, int multiprocessors, void* stream) {
    switch (config.choice) {
        case 0:
            return run<Form<D, 1, 256, 2, false>>(args, config, multiprocessors, stream);
        case 1:
            return run<Form<D, 1, 64, 1, false>>(args, config, multiprocessors, stream);
        default:
            if constexpr (D == DType::u8) {
                return run<Form<D, 2, 128, 2, true>>(args, config, multiprocessors, stream);
            }
    }
}

}  // namespace

void gemm_wgmma(const Gemm& args, const GemmConfig& config, int multiprocessors, void* stream) {
    switch (args.dtype) {
        case DType::bf16:
            return run_form<DType::bf16>(args, config, multiprocessors, stream);
        case DType::f16:
            return run_form<DType::f16>(args, config, multiprocessors, stream);
        default:
            return run_form<DType::u8>(args, config, multiprocessors, stream);
    }
}

}  // namespace fastbert::cuda
