"""Modules of sentence-transformers behind an accelerated encoder, on the caller's thread."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_folders
import sentence_transformers as st
import torch
from sentence_transformers.sentence_transformer import modules
from started_threads import counting, started
from torch import nn

import fastbert

# Enough elements in a batch for torch to share each operator of Pooling.
TEXTS = [sentence_folders.TEXTS[index % 3] + " cat" * (index % 5) for index in range(512)]
KINDS = (modules.Pooling, modules.LayerNorm, modules.Normalize)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folders.tiny(tmp_path_factory.mktemp("behind") / "tiny")


def embedder(tiny: Path, mode: str = "mean") -> Any:
    width = sentence_folders.HIDDEN
    behind: list[nn.Module] = [
        modules.Pooling(width, mode),
        modules.LayerNorm(width),
        modules.Normalize(),
    ]
    parts = [modules.Transformer(str(tiny)), *behind]
    return st.SentenceTransformer(modules=parts, device="cpu").eval()


@counting
@pytest.mark.parametrize("mode", ["mean", "max", "cls", "weightedmean"])
def test_encoding_wakes_no_thread(mode: str, tiny: Path, two_threads: None) -> None:
    model = fastbert.accelerate(embedder(tiny, mode))

    def encode() -> None:
        model.encode(TEXTS, batch_size=512)

    encode()  # the kernels' own threads, and those of the tokenizer, are there now
    assert started(encode) == 0
    features = {
        "token_embeddings": torch.randn(64, 40, 512),
        "attention_mask": torch.ones(64, 40, dtype=torch.int64),
    }
    with torch.no_grad():
        assert started(lambda: modules.Pooling(512, mode)(dict(features))) > 0 or mode == "cls"


def test_passes_with_gradients_take_all_threads(
    tiny: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, inner = [], modules.Pooling._forward_padded

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(torch.get_num_threads())
        return inner(*given, **named)

    monkeypatch.setattr(modules.Pooling, "_forward_padded", watched)
    model = fastbert.accelerate(embedder(tiny))
    features = model.preprocess(TEXTS[:4])
    model(dict(features))["sentence_embedding"].sum().backward()
    with torch.no_grad():
        model(dict(features))
    assert seen == [2, 1]


def test_they_are_what_they_were(tiny: Path, tmp_path: Path) -> None:
    model = embedder(tiny)
    expected = model.encode(TEXTS[:7])
    model.save_pretrained(str(tmp_path / "before"), create_model_card=False)
    fastbert.accelerate(fastbert.accelerate(model))
    for kind, module in zip(KINDS, list(model.children())[1:], strict=True):
        assert isinstance(module, kind) and type(module) is not kind
        assert type(module).__mro__[1] is kind
        assert f"{type(module).__module__}.{type(module).__qualname__}" == (
            f"{kind.__module__}.{kind.__qualname__}"
        )
    model.save_pretrained(str(tmp_path / "after"), create_model_card=False)
    names = ("modules.json", "1_Pooling/config.json")
    for name in names:
        assert (tmp_path / "before" / name).read_text() == (tmp_path / "after" / name).read_text()
    found = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for one in found:
        np.testing.assert_allclose(one.encode(TEXTS[:7]), expected, atol=2e-5)
        assert fastbert.restore(one) is one
        kinds = tuple(type(module) for module in list(one.children())[1:])
        assert kinds == KINDS
        assert np.array_equal(one.encode(TEXTS[:7]), expected)


def test_a_class_of_ones_own_stays(tiny: Path) -> None:
    class Pooling(modules.Pooling):
        pass

    model = embedder(tiny)
    model[1] = Pooling(sentence_folders.HIDDEN)
    fastbert.accelerate(model)
    assert type(model[1]) is Pooling


def test_other_arguments_reach_them(tiny: Path) -> None:
    """Whatever is no dictionary of features ends as it does in sentence-transformers."""
    model = embedder(tiny)
    given: tuple[Any, ...] = (None, {}, {"token_embeddings": "text"})

    def ends() -> list[str]:
        told = []
        for features in given:
            for module in list(model.children())[1:]:
                with torch.no_grad():
                    try:
                        told.append(str(module(features)))
                    except (TypeError, KeyError, AttributeError) as error:
                        told.append(f"{type(error).__name__}: {error}")
        return told

    expected = ends()
    fastbert.accelerate(model)
    assert ends() == expected


def test_recording_sees_their_operators_alone(tiny: Path) -> None:
    model = fastbert.accelerate(embedder(tiny))
    features = {
        "token_embeddings": torch.randn(2, 5, sentence_folders.HIDDEN),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    }
    with torch.no_grad():
        expected = model[1](dict(features))["sentence_embedding"]
        compiled = torch.compile(model[1], backend="eager", fullgraph=True)
        assert torch.equal(compiled(dict(features))["sentence_embedding"], expected)
    # Checked by another recording without gradients, whose graph must be the same.
    traced = torch.jit.trace(model[1], (dict(features),), strict=False)
    assert torch.equal(traced(dict(features))["sentence_embedding"], expected)
