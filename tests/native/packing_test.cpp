// Weights are packed part by part into their final place: the same bytes as packed alone, memory
// only for what was packed, and nothing left to use of what failed half way.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cpu/ops/linear.h"
#include "cpu/projection.h"
#include "harness.h"
#include "prepared.h"

using namespace fastbert;

namespace {

bool says(const std::string& message, const char* words) {
    return message.find(words) != std::string::npos;
}

struct Weight {
    index_t n, k;
    std::vector<float> values, scale;
    std::vector<std::int8_t> quantised;

    Weight(index_t rows, index_t columns, unsigned seed)
        : n(rows), k(columns), values(test::normal_values(rows * columns, seed)) {
        scale.assign(static_cast<std::size_t>(n), 0.03f);
        for (float v : values) quantised.push_back(static_cast<std::int8_t>(v * 30.0f));
    }
    ProjectionSource source(Precision precision) const {
        ProjectionSource s;
        s.n = n;
        s.k = s.stride = k;
        s.precision = precision;
        s.weight = values.data();
        if (fastbert::quantised(precision)) {
            s.weight = quantised.data();
            s.dtype = DType::s8;
            s.weight_scale = scale.data();
        }
        return s;
    }
};

// Bytes of the process that lie in memory.
index_t resident() {
    long pages = 0, all = 0;
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    if (file == nullptr) return -1;
    const int read = std::fscanf(file, "%ld %ld", &all, &pages);
    std::fclose(file);
    return read == 2 ? index_t{pages} * sysconf(_SC_PAGESIZE) : -1;
}

constexpr index_t kHidden = 32, kIntermediate = 48;

struct Layer {
    Weight qkv{3 * kHidden, kHidden, 1}, out{kHidden, kHidden, 2}, up{kIntermediate, kHidden, 3},
        down{kHidden, kIntermediate, 4};
    std::vector<float> ones = std::vector<float>(kHidden, 1.0f);

    BlockSource source() const {
        const NormSource norm{{ones.data(), DType::f32}, {ones.data(), DType::f32}, 1e-5f};
        const Precision p = Precision::f32;
        return {qkv.source(p), out.source(p), norm, up.source(p), down.source(p), norm};
    }
    static EncoderShape shape() {
        EncoderShape s;
        s.hidden = kHidden;
        s.num_heads = 2;
        s.head_dim = kHidden / 2;
        s.intermediate = kIntermediate;
        s.activation = Activation::gelu;
        s.scale = 0.25f;
        return s;
    }
};

}  // namespace

TEST(packing_places_the_same_bytes_one_after_the_other) {
    const std::vector<Weight> weights{{40, 33, 1}, {7, 64, 2}, {65, 5, 3}};
    test::for_each_isa([&](Isa) {
        for (Precision p : {Precision::f32, Precision::bf16, Precision::int8}) {
            std::vector<ProjectionSize> sizes;
            for (const Weight& w : weights) sizes.push_back({w.n, w.k, p});
            PackedMemory memory("test", sizes);
            const std::uint8_t* end = nullptr;
            for (const Weight& w : weights) {
                const ProjectionSource source = w.source(p);
                PackedProjection placed("test", "placed", source, w.n, w.k);
                PackedProjection alone("test", "alone", source, w.n, w.k);
                AlignedBytes own;
                own.reserve(alone.packed_size);
                std::memset(own.data(), 0, static_cast<std::size_t>(alone.packed_size));
                alone.pack(source, own.data());
                memory.pack(placed, source);
                CHECK(reinterpret_cast<std::uintptr_t>(placed.packed) % 64 == 0);
                CHECK(end == nullptr || (placed.packed >= end && placed.packed < end + 64));
                CHECK(std::memcmp(placed.packed, alone.packed,
                                  static_cast<std::size_t>(alone.packed_size)) == 0);
                end = placed.packed + placed.packed_size;
            }
            memory.check_full();
        }
    });
}

TEST(packing_takes_memory_only_for_what_is_packed) {
    constexpr index_t kSize = 1024, kParts = 32;  // of 4 MiB each
    const Weight weight(kSize, kSize, 1);
    const ProjectionSource source = weight.source(Precision::f32);
    PackedProjection part("test", "part", source, kSize, kSize);
    const index_t before = resident();
    if (before < 0) return;
    PackedMemory memory("test",
                        std::vector<ProjectionSize>(kParts, {kSize, kSize, Precision::f32}));
    memory.pack(part, source);
    // One part of 32, some huge pages that belong to others too, and what a sanitizer notes about
    // each byte.
    const index_t taken = resident() - before;
    CHECK_MSG(taken < kParts / 2 * part.packed_size, std::to_string(taken));
}

TEST(packing_refuses_more_and_less_than_was_announced) {
    const Weight weight(40, 33, 1);
    const ProjectionSource source = weight.source(Precision::f32);
    PackedProjection part("test", "part", source, 40, 33);
    PackedMemory memory("test", {{40, 33, Precision::f32}});
    CHECK(says(test::message_of([&] { memory.check_full(); }), "but 0 were packed"));
    memory.pack(part, source);
    CHECK(says(test::message_of([&] { memory.pack(part, source); }), "0 are left"));
    CHECK(test::message_of([&] { memory.check_full(); }).empty());
    CHECK(!test::message_of([] { PackedMemory("test", {{40, -1, Precision::f32}}); }).empty());
    CHECK(!test::message_of([] { PackedMemory("test", {{40, 33, Precision(9)}}); }).empty());
}

TEST(packing_notices_another_instruction_set) {
    const std::vector<Isa> all = usable_isas();
    if (all.size() < 2) return;
    const Weight weight(40, 33, 1);
    const ProjectionSource source = weight.source(Precision::f32);
    set_active(all[0]);
    PackedMemory memory("test", {{40, 33, Precision::f32}});
    PackedProjection part("test", "part", source, 40, 33);
    set_active(all[1]);
    CHECK(says(test::message_of([&] { memory.pack(part, source); }), "was changed from"));
    set_active(detected());
}

TEST(an_encoder_that_fails_half_way_is_gone) {
    const Layer layer;
    const std::vector<BlockSource> blocks(2, layer.source());
    const std::vector<ProjectionSize> sizes = test::sizes_of(blocks);
    EncoderPacker packer(Layer::shape(), sizes);
    packer.add_block(blocks[0]);
    BlockSource wrong = blocks[1];
    wrong.down.weight = nullptr;
    CHECK(says(test::message_of([&] { packer.add_block(wrong); }), "down weight"));
    CHECK(says(test::message_of([&] { packer.add_block(blocks[1]); }), "failed or is finished"));
    CHECK(says(test::message_of([&] { packer.finish(); }), "failed or is finished"));

    EncoderPacker other(Layer::shape(), sizes);
    other.add_block(blocks[0]);
    other.add_block(blocks[1]);
    const auto encoder = other.finish();
    CHECK(encoder->packed_bytes() > 0);
    CHECK(says(test::message_of([&] { other.add_block(blocks[0]); }), "failed or is finished"));

    EncoderPacker unfinished(Layer::shape(), sizes);
    unfinished.add_block(blocks[0]);
    CHECK(says(test::message_of([&] { unfinished.finish(); }), "were announced"));
}

TEST(encoders_are_packed_in_several_threads_at_once) {
    const Layer layer;
    const std::vector<BlockSource> blocks(4, layer.source());
    std::vector<std::thread> threads;
    std::vector<index_t> bytes(3, 0);
    for (index_t& packed : bytes) {
        threads.emplace_back(
            [&] { packed = test::EncoderParts{Layer::shape(), blocks}.encoder()->packed_bytes(); });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(bytes[0] > 0 && bytes[1] == bytes[0] && bytes[2] == bytes[0]);
}
