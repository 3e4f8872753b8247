#include "python/bind.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastbert's CPU kernels. Internal: use fastbert.ops.";
    fastbert::bind_runtime(m);
    fastbert::bind_images(m);
    fastbert::bind_layer_norm(m);
    fastbert::bind_peak(m);
    fastbert::bind_linear(m);
    fastbert::bind_quantize(m);
    fastbert::bind_segments(m);
    fastbert::bind_act(m);
    fastbert::bind_dropout(m);
    fastbert::bind_embed(m);
    fastbert::bind_attention(m);
    fastbert::bind_decoding(m);
    fastbert::bind_watch(m);
    fastbert::bind_sources(m);
    fastbert::bind_encoder(m);
    fastbert::bind_decoder(m);
}
