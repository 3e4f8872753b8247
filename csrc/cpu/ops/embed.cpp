#include "cpu/ops/embed.h"

#include <string>
#include <vector>

#include "cpu/ops/driver.h"

namespace fastbert {
namespace {

constexpr const char* op = "embed_layer_norm";

// The ids of a lookup are read once, into `copy`: another thread of the caller may write to them
// after they were checked.
void check_lookup(const char* what, Lookup& lookup, index_t rows, index_t hidden,
                  std::vector<std::int64_t>& copy) {
    if (lookup.table == nullptr) {
        if (lookup.ids != nullptr) {
            fail(op, std::string(what) + " ids were given without a " + what + " table.");
        }
        return;
    }
    check_size(op, (std::string("entries of the ") + what + " table").c_str(), lookup.entries);
    check_matrix(op, (std::string(what) + " table").c_str(), lookup.table, lookup.entries, hidden,
                 lookup.stride);
    if (rows == 0) return;
    if (lookup.ids == nullptr) {
        fail(op, std::string(what) + " table was given without " + what + " ids.");
    }
    copy.assign(lookup.ids, lookup.ids + rows);
    lookup.ids = copy.data();
    check_ids(what, lookup.ids, rows, lookup.entries);
}

}  // namespace

void check_ids(const char* what, const std::int64_t* ids, index_t rows, index_t entries) {
    for (index_t row = 0; row < rows; ++row) {
        const std::int64_t id = ids[row];
        if (static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(entries)) continue;
        throw std::out_of_range(std::string(op) + ": " + what + " id " + std::to_string(id) +
                                " at position " + std::to_string(row) +
                                " is outside its table of " + std::to_string(entries) +
                                " entries (ids 0 to " + std::to_string(entries - 1) + ").");
    }
}

void embed_layer_norm(const EmbedArgs& given) {
    EmbedArgs args = given;
    thread_local std::vector<std::int64_t> ids[4];
    check_float_dtype(op, "the tables", args.dtype);
    check_eps(op, args.eps);
    check_size(op, "rows", args.rows);
    check_size(op, "hidden", args.hidden);
    if ((args.word.table == nullptr) == (args.embeds == nullptr) && args.rows > 0 &&
        args.hidden > 0) {
        fail(op, "exactly one of a word table and given embeddings is needed.");
    }
    if (args.embeds != nullptr) {
        check_matrix(op, "embeds", args.embeds, args.rows, args.hidden, args.embeds_stride);
    }
    check_lookup("word", args.word, args.rows, args.hidden, ids[0]);
    check_lookup("position", args.position, args.rows, args.hidden, ids[1]);
    check_lookup("type", args.type, args.rows, args.hidden, ids[2]);
    check_lookup("language", args.language, args.rows, args.hidden, ids[3]);
    check_matrix(op, "out", args.out, args.rows, args.hidden, args.out_stride);
    const KernelTable& table = active_kernels();
    const Float32Param weight(op, "weight", args.weight, args.hidden, true, table);
    const Float32Param bias(op, "bias", args.bias, args.hidden, true, table);
    if (args.rows == 0 || args.hidden == 0) return;

    const NormParams norm{weight.get(), bias.get(), args.eps};
    const auto kernel = table.embed.rows[static_cast<int>(args.dtype)];
    const index_t streams = 2 + (args.position.table != nullptr) + (args.type.table != nullptr) +
                            (args.language.table != nullptr);
    for_row_blocks(args.rows, streams * args.hidden * size_of(args.dtype),
                   [&](index_t first, index_t count) {
                       kernel(args, norm, first, count, thread_scratch(args.hidden));
                   });
}

}  // namespace fastbert
