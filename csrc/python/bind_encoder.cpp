#include <pybind11/stl.h>

#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "python/bind.h"
#include "python/sources.h"
#include "python/watch.h"

namespace fastbert {

FASTBERT_RECORD(NormSource)
FASTBERT_RECORD(BlockSource)
FASTBERT_RECORD(EmbeddingSource)
FASTBERT_RECORD(EncoderShape)
FASTBERT_RECORD(IndexGrid)
FASTBERT_RECORD(EncoderInput)
FASTBERT_RECORD(EncoderOutput)

namespace {

void add_sources(py::module_& m) {
    const char* const where = "csrc/cpu/encoder.h";
#define FIELD(name, member) FASTBERT_FIELD(NormSource, name, member, true)
    Record<NormSource>::add(m, where,
                            {
                                FIELD("weight", weight.data),
                                FIELD("weight_dtype", weight.dtype),
                                FIELD("bias", bias.data),
                                FIELD("bias_dtype", bias.dtype),
                                FIELD("eps", eps),
                            });
#undef FIELD
#define FIELD(member) FASTBERT_FIELD(BlockSource, #member, member, true)
    Record<BlockSource>::add(m, where,
                             {FIELD(qkv), FIELD(out), FIELD(attention_norm), FIELD(up), FIELD(down),
                              FIELD(output_norm)});
#undef FIELD
#define FIELD(member, required) FASTBERT_FIELD(EmbeddingSource, #member, member, required)
    Record<EmbeddingSource>::add(m, where,
                                 {
                                     FIELD(dtype, true),
                                     FIELD(width, true),
                                     FIELD(word, true),
                                     FIELD(position, false),
                                     FIELD(type, false),
                                     FIELD(language, false),
                                     FIELD(norm, true),
                                     FIELD(projection, false),
                                 });
#undef FIELD
#define FIELD(name, member, required) FASTBERT_FIELD(EncoderShape, name, member, required)
    Record<EncoderShape>::add(m, where,
                              {
                                  FIELD("hidden", hidden, true),
                                  FIELD("num_heads", num_heads, true),
                                  FIELD("head_dim", head_dim, true),
                                  FIELD("intermediate", intermediate, true),
                                  FIELD("activation", activation, true),
                                  FIELD("activation_a", activation_params.a, false),
                                  FIELD("activation_b", activation_params.b, false),
                                  FIELD("activation_c", activation_params.c, false),
                                  FIELD("activation_d", activation_params.d, false),
                                  FIELD("pre_norm", pre_norm, true),
                                  FIELD("scale", scale, true),
                                  FIELD("attention", attention, true),
                              });
#undef FIELD
}

void add_arguments(py::module_& m) {
    const char* const where = "csrc/cpu/encoder.h";
#define FIELD(member) FASTBERT_FIELD(IndexGrid, #member, member, true)
    Record<IndexGrid>::add(m, where, {FIELD(data), FIELD(row_stride), FIELD(column_stride)});
#undef FIELD
#define FIELD(member, required) FASTBERT_FIELD(EncoderInput, #member, member, required)
    Record<EncoderInput>::add(m, where,
                              {
                                  FIELD(x, false),
                                  FIELD(dtype, false),
                                  FIELD(x_stride, false),
                                  FIELD(word, false),
                                  FIELD(position, false),
                                  FIELD(type, false),
                                  FIELD(language, false),
                                  FIELD(embeds, false),
                                  FIELD(embeds_stride, false),
                                  FIELD(total, true),
                                  FIELD(cu_seqlens, true),
                                  FIELD(batch, true),
                                  FIELD(max_seqlen, true),
                                  FIELD(seqlen, true),
                                  FIELD(token_indices, false),
                                  FIELD(key_bias, false),
                                  FIELD(bias, false),
                                  FIELD(bias_batch_stride, false),
                                  FIELD(bias_head_stride, false),
                                  FIELD(bias_query_stride, false),
                              });
#undef FIELD
#define FIELD(member, required) FASTBERT_FIELD(EncoderOutput, #member, member, required)
    Record<EncoderOutput>::add(m, where,
                               {
                                   FIELD(out, true),
                                   FIELD(dtype, true),
                                   FIELD(stride, true),
                                   FIELD(rows, true),
                                   FIELD(grid, false),
                                   FIELD(pooled, false),
                                   FIELD(pooled_stride, false),
                               });
#undef FIELD
}

py::object run(Encoder& encoder, const EncoderInput& input, const EncoderOutput& output,
               int threads, Watch* watch, bool profile) {
    if ((watch != nullptr && !watch->unchanged(true)) || encoder.isa() != active()) {
        return py::none();
    }
    EncoderProfile spent;
    {
        const py::gil_scoped_release release;
        encoder.run(input, output, threads, profile ? &spent : nullptr);
    }
    if (!profile) return py::bool_(true);
    return py::make_tuple(spent.nanoseconds, spent.threads);
}

}  // namespace

void bind_encoder(py::module_& m) {
    add_sources(m);
    add_arguments(m);
    py::class_<Encoder>(m, "Encoder", "Blocks with packed weights; see csrc/cpu/encoder.h.")
        .def("run", &run, py::arg("input"), py::arg("output"), py::arg("threads"), py::arg("watch"),
             py::arg("profile"),
             "One forward pass. Returns None, and computes nothing, when the watch saw a change or "
             "the instruction set is another one by now; else True, or with profile=True the "
             "nanoseconds per block and step, summed over threads, and the threads.")
        .def_property_readonly("packed_bytes", &Encoder::packed_bytes)
        .def_property_readonly("arena_bytes", &Encoder::arena_bytes)
        .def_property_readonly_static("steps", [](const py::object&) { return step_names(); });
    using Released = py::call_guard<py::gil_scoped_release>;
    py::class_<EncoderPacker>(m, "EncoderPacker",
                              "Makes an Encoder part by part; see csrc/cpu/encoder.h.")
        .def(py::init<const EncoderShape&, const std::vector<ProjectionSize>&>(), py::arg("shape"),
             py::arg("sizes"))
        .def("set_embedding", &EncoderPacker::set_embedding, py::arg("source"), Released())
        .def("add_block", &EncoderPacker::add_block, py::arg("source"), Released())
        .def("set_pooler", &EncoderPacker::set_pooler, py::arg("source"), Released())
        .def("finish", &EncoderPacker::finish, Released());
}

}  // namespace fastbert
