#include <pybind11/stl.h>

#include "cpu/decoder.h"
#include "cpu/isa.h"
#include "python/bind.h"
#include "python/sources.h"
#include "python/watch.h"

namespace fastbert {

FASTBERT_RECORD(RmsNormSource)
FASTBERT_RECORD(DecoderBlockSource)
FASTBERT_RECORD(DecoderShape)
FASTBERT_RECORD(CachePlaces)
FASTBERT_RECORD(DecoderInput)
FASTBERT_RECORD(DecoderOutput)

namespace {

const char* const kWhere = "csrc/cpu/decoder.h";

void add_sources(py::module_& m) {
#define FIELD(name, member) FASTBERT_FIELD(RmsNormSource, name, member, true)
    Record<RmsNormSource>::add(
        m, kWhere,
        {FIELD("weight", weight.data), FIELD("weight_dtype", weight.dtype), FIELD("eps", eps)});
#undef FIELD
#define FIELD(name, member, required) FASTBERT_FIELD(DecoderBlockSource, name, member, required)
    Record<DecoderBlockSource>::add(m, kWhere,
                                    {
                                        FIELD("attention_norm", attention_norm, true),
                                        FIELD("qkv", qkv, true),
                                        FIELD("query_norm", query_norm, true),
                                        FIELD("key_norm", key_norm, true),
                                        FIELD("out", out, true),
                                        FIELD("feedforward_norm", feedforward_norm, true),
                                        FIELD("up", up, true),
                                        FIELD("down", down, true),
                                        FIELD("activation_a", activation_params.a, false),
                                        FIELD("activation_b", activation_params.b, false),
                                        FIELD("activation_c", activation_params.c, false),
                                        FIELD("activation_d", activation_params.d, false),
                                    });
#undef FIELD
#define FIELD(member) FASTBERT_FIELD(DecoderShape, #member, member, true)
    Record<DecoderShape>::add(
        m, kWhere,
        {FIELD(hidden), FIELD(num_heads), FIELD(num_kv_heads), FIELD(head_dim), FIELD(intermediate),
         FIELD(activation), FIELD(scale), FIELD(attention)});
#undef FIELD
}

void add_arguments(py::module_& m) {
#define FIELD(member) FASTBERT_FIELD(CachePlaces, #member, member, true)
    Record<CachePlaces>::add(m, kWhere,
                             {FIELD(layers), FIELD(rows), FIELD(row_stride), FIELD(head_stride),
                              FIELD(places), FIELD(held)});
#undef FIELD
#define FIELD(member, required) FASTBERT_FIELD(DecoderInput, #member, member, required)
    Record<DecoderInput>::add(m, kWhere,
                              {
                                  FIELD(ids, false),
                                  FIELD(x, false),
                                  FIELD(dtype, false),
                                  FIELD(x_stride, false),
                                  FIELD(total, true),
                                  FIELD(cu_seqlens, true),
                                  FIELD(batch, true),
                                  FIELD(cos, true),
                                  FIELD(sin, true),
                                  FIELD(causal, true),
                                  FIELD(cache, false),
                              });
#undef FIELD
#define FIELD(member, required) FASTBERT_FIELD(DecoderOutput, #member, member, required)
    Record<DecoderOutput>::add(m, kWhere,
                               {
                                   FIELD(tokens, false),
                                   FIELD(rows, true),
                                   FIELD(dtype, true),
                                   FIELD(hidden, false),
                                   FIELD(hidden_stride, false),
                                   FIELD(scores, false),
                                   FIELD(scores_stride, false),
                               });
#undef FIELD
}

std::unique_ptr<DecoderPacker> packer(const DecoderShape& shape, const TableSource& words,
                                      int words_dtype, const RmsNormSource& norm,
                                      const std::vector<ProjectionSize>& sizes) {
    return std::make_unique<DecoderPacker>(
        DecoderSource{shape, words, static_cast<DType>(words_dtype), norm, sizes});
}

bool run(Decoder& decoder, const DecoderInput& input, const DecoderOutput& output, int threads,
         Watch* watch) {
    if ((watch != nullptr && !watch->unchanged(true)) || decoder.isa() != active()) return false;
    const py::gil_scoped_release release;
    decoder.run(input, output, threads);
    return true;
}

}  // namespace

void bind_decoder(py::module_& m) {
    add_sources(m);
    add_arguments(m);
    py::class_<Decoder>(m, "Decoder", "A decoder with packed weights; see csrc/cpu/decoder.h.")
        .def("run", &run, py::arg("input"), py::arg("output"), py::arg("threads"), py::arg("watch"),
             "One pass. Returns False, and computes nothing, when the watch saw a change or the "
             "instruction set is another one by now.")
        .def_property_readonly("packed_bytes", &Decoder::packed_bytes)
        .def_property_readonly("arena_bytes", &Decoder::arena_bytes);
    using Released = py::call_guard<py::gil_scoped_release>;
    py::class_<DecoderPacker>(m, "DecoderPacker",
                              "Makes a Decoder part by part; see csrc/cpu/decoder.h.")
        .def(py::init(&packer), py::arg("shape"), py::arg("words"), py::arg("words_dtype"),
             py::arg("norm"), py::arg("sizes"))
        .def("add_block", &DecoderPacker::add_block, py::arg("source"), Released())
        .def("set_head", &DecoderPacker::set_head, py::arg("source"), Released())
        .def("finish", &DecoderPacker::finish, Released());
}

}  // namespace fastbert
