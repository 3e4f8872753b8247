"""An int8 copy of an accelerated encoder is made a few rows at a time.

The mechanism: beside the model stand its int8 weights and what kernels pack of them, and no
projection is held in float32 a second time. Measured as the peak of a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import torch, transformers, fastbert

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

def build(width, layers):
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width)
    return transformers.BertModel(config).eval()

torch.set_num_threads(1)
ids = torch.ones(1, 8, dtype=torch.int64)
with torch.no_grad():
    fastbert.accelerate(build(32, 1), quantization="int8")(ids)  # loads what is loaded once
    model = build(768, 6)
    before = kilobytes("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    fastbert.accelerate(model, quantization="int8")(ids)
weights = sum(p.numel() for n, p in model.encoder.named_parameters() if n.endswith("weight"))
print((kilobytes("VmHWM") - before) * 1024 / (4 * weights))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_is_held_in_float32_a_second_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # int8 and packed: a quarter each; the rest is what is made on the way.
    assert float(done.stdout) <= 0.7, done.stdout
