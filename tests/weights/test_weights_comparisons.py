"""Following the weights costs no other work: nothing is compared, packed or hung on for nothing.

Bytes are compared while something may write to them without a version, and no longer; changed
weights are packed when they are used again; nothing of the process is touched.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from following import IDS, Counted, made, part, train

import fastbert
from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def test_nothing_is_compared_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    model = made()
    assert counted.of(lambda: model(IDS)) == (1, 0)
    assert counted.of(lambda: model(IDS)) == (0, 0)
    part(model).weight.add_(1.0)
    assert counted.of(lambda: model(IDS)) == (1, 0)
    with torch.enable_grad():
        for _ in range(2):
            assert counted.of(lambda: model(IDS)) == (0, 0)


def test_gradients_cost_comparisons_until_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    model = made()
    model(IDS)
    assert "every pass" not in fastbert.explain(model)
    train(model)
    assert "model.zero_grad()" in fastbert.explain(model)
    # Packed again, since nobody kept bytes to compare with: 19 tensors of the encoder, 1 head.
    assert counted.of(lambda: model(IDS)) == (1, 20)
    for _ in range(2):
        assert counted.of(lambda: model(IDS)) == (0, 20)
    model.zero_grad()
    assert "every pass" not in fastbert.explain(model)
    model(IDS)
    assert counted.of(lambda: model(IDS)) == (0, 0)
    train(model)
    model.zero_grad()
    assert counted.of(lambda: model(IDS)) == (0, 20)
    assert counted.of(lambda: model(IDS)) == (0, 0)


def test_changed_weights_are_packed_for_the_second_pass_with_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with torch.enable_grad():
        assert counted.of(lambda: model(IDS)) == (1, 0)
        for fused in (False, True):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=fused)
            for _ in range(3):
                train(model, mode=False)
                optimizer.step()
                optimizer.zero_grad()
                assert counted.of(lambda: model(IDS))[0] == 0
            assert counted.of(lambda: model(IDS))[0] == 1
            assert counted.of(lambda: model(IDS))[0] == 0
    part(model).weight.add_(1.0)
    assert counted.of(lambda: model(IDS))[0] == 1


LOOK = """
import gc, signal, sys, threading
import torch
from torch.nn.modules import module
from torch.optim import optimizer

def process():
    kept = {
        f"{where.__name__}.{name}": dict(value)
        for where in (module, optimizer)
        for name, value in vars(where).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    kept["signals"] = {s: signal.getsignal(s) for s in signal.valid_signals()}
    kept["traces"] = (sys.gettrace(), threading.gettrace())
    kept["profiles"] = (sys.getprofile(), threading.getprofile())
    kept["hooks"] = (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)
    kept["gc"] = list(gc.callbacks)
    kept["optimizer"] = dict(vars(torch.optim.Optimizer))
    kept["tensor"] = {n: getattr(torch.Tensor, n) for n in ("data", "numpy", "__setattr__")}
    return kept

before = process()
for name in ("optimizer._global_optimizer_post_hooks", "optimizer._global_optimizer_pre_hooks"):
    assert f"torch.optim.{name}" in before, "torch keeps these elsewhere"
assert len([name for name in before if name.startswith("torch.nn")]) >= 5
import fastbert
fastbert.BertModel
model = fastbert.BertForSequenceClassification(fastbert.BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
step = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.tensor([[1, 2]])
model(ids, labels=torch.tensor([0])).loss.backward()
step.step()
with torch.no_grad():
    model.eval()(ids)
after = process()
changed = [name for name in before if before[name] != after[name]]
# torch itself names a hook that profiles on an optimizer's class when it is first made.
assert not [n for n in changed if n != "optimizer"], changed
"""


def test_nothing_is_hung_on_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
