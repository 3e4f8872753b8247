"""accelerate() of whatever holds an encoder, and its refusals.

Nobody has the bare encoder in their hands: it stands in a pipeline, a sentence-transformers model,
an adapter, a trainer's wrapper or an object of a service. It must be found there, changed where it
is, and everything around it must answer as before.
"""

from __future__ import annotations

import functools
import pickle
import threading
import warnings
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentence_folders
import sentence_transformers as st
import torch
import transformers
from accelerating import IDS, MASK, asked, pair, plain, reasons, same, served, shells
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from torch import nn

import fastbert
from fastbert.integrations import serving
from fastbert.integrations.accelerate import accelerated_in

TEXTS = sentence_folders.TEXTS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folders.tiny(tmp_path_factory.mktemp("accelerate") / "tiny")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether masked tokens were computed, in every pass with padding."""
    seen: list[bool] = []
    inner = serving.keeping_padding

    def watched(keep: bool) -> Any:
        seen.append(keep)
        return inner(keep)

    monkeypatch.setattr(serving, "keeping_padding", watched)
    return seen


def with_head(kind: Any, tiny: Path) -> Any:
    torch.manual_seed(1)
    return kind.from_pretrained(tiny).eval()


PIPELINES = {
    "feature-extraction": (transformers.AutoModel, "the cat sat"),
    "text-classification": (transformers.AutoModelForSequenceClassification, "the cat sat"),
    "token-classification": (transformers.AutoModelForTokenClassification, "the cat sat"),
    "fill-mask": (transformers.AutoModelForMaskedLM, "the [MASK] sat"),
}


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines(task: str, tiny: Path) -> None:
    kind, text = PIPELINES[task]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = with_head(kind, tiny)
    pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    texts = [text, f"far far {text}"]
    expected = pipe(texts, batch_size=2)
    assert fastbert.accelerate(pipe) is pipe
    assert accelerated_in(pipe)
    alike(expected, pipe(texts, batch_size=2))
    assert not reasons(pipe)
    fastbert.restore(pipe)
    assert not accelerated_in(pipe)


def alike(expected: Any, found: Any) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        expected, found = list(expected.values()), list(found.values())
    if isinstance(expected, list):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            alike(one, other)
    elif isinstance(expected, (float, np.floating)):
        assert found == pytest.approx(expected, abs=2e-5)
    else:
        assert expected == found


def sentence_model(tiny: Path, *behind: nn.Module, **settings: Any) -> Any:
    return st.SentenceTransformer(
        modules=[Transformer(str(tiny)), *behind], device="cpu", **settings
    ).eval()


POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")


@pytest.mark.parametrize("mode", POOLINGS)
def test_sentence_transformers(mode: str, tiny: Path, packed: list[bool]) -> None:
    modules = (Pooling(sentence_folders.HIDDEN, mode), Normalize())
    model = sentence_model(tiny, *modules, prompts={"query": "query : "})
    options: list[dict[str, Any]] = [
        {},
        {"convert_to_tensor": True},
        {"normalize_embeddings": True, "batch_size": 2},
        {"prompt_name": "query"},
        {"precision": "int8"},
        {"truncate_dim": 8},
    ]
    expected = [model.encode(TEXTS, **each) for each in options]
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    assert fastbert.accelerate(model) is model
    for each, want in zip(options, expected, strict=True):
        found = model.encode(TEXTS, **each)
        bound = 1 if each.get("precision") else 2e-5
        np.testing.assert_allclose(np.asarray(found), np.asarray(want), atol=bound, rtol=0)
    for one, other in zip(
        tokens, model.encode(TEXTS, output_value="token_embeddings"), strict=True
    ):
        same(one, other)
    assert packed and not any(packed) and not reasons(model)


def test_padding_is_computed_for_modules_that_look_at_it(tiny: Path, packed: list[bool]) -> None:
    class Sum(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {**features, "sentence_embedding": features["token_embeddings"].sum(dim=1)}

    for module in (Sum(), Dense(32, 8, module_input_name="token_embeddings",
                                module_output_name="token_embeddings")):  # fmt: skip
        pooling = Pooling(sentence_folders.HIDDEN if isinstance(module, Sum) else 8)
        model = sentence_model(tiny, module, *([] if isinstance(module, Sum) else [pooling]))
        expected = model.encode(TEXTS)
        found = fastbert.accelerate(model).encode(TEXTS)
        np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)
        assert packed and all(packed)
        packed.clear()


def test_all_features_are_theirs(tiny: Path, packed: list[bool]) -> None:
    """Whoever gets the features of a batch may look at those of masked tokens."""
    model = sentence_model(tiny, Pooling(sentence_folders.HIDDEN), Normalize())
    features = model.preprocess(TEXTS)
    with torch.no_grad():
        expected = model(dict(features))
    each = model.encode(TEXTS, output_value=None)
    fastbert.accelerate(model)
    with torch.no_grad():
        found = model(dict(features))
    assert expected.keys() == found.keys()
    for name, want in expected.items():
        if isinstance(want, torch.Tensor):
            same(want, found[name])
    for one, other in zip(each, model.encode(TEXTS, output_value=None), strict=True):
        for name, want in one.items():
            if isinstance(want, torch.Tensor):
                same(want, other[name])
    assert packed and all(packed) and not reasons(model)


def test_losses_leave_masked_tokens_out(tiny: Path, packed: list[bool]) -> None:
    model = sentence_model(tiny, Pooling(sentence_folders.HIDDEN))
    loss = losses.MultipleNegativesRankingLoss(model)
    batches = [model.preprocess(TEXTS), model.preprocess(TEXTS[::-1])]
    expected = loss([dict(batch) for batch in batches], None)
    fastbert.accelerate(model)
    same(expected, loss([dict(batch) for batch in batches], None))
    assert packed and not any(packed) and not reasons(model)


def test_a_sentence_model_is_saved_as_theirs(tiny: Path, tmp_path: Path) -> None:
    model = sentence_model(tiny, Pooling(sentence_folders.HIDDEN))
    model.encode(TEXTS)  # tokenizers remember their last call in the file
    model.save_pretrained(str(tmp_path / "before"), create_model_card=False)
    fastbert.accelerate(model)
    expected = model.encode(TEXTS)
    model.save_pretrained(str(tmp_path / "after"), create_model_card=False)
    for path in (tmp_path / "before").rglob("*.json"):
        twin = tmp_path / "after" / path.relative_to(tmp_path / "before")
        assert path.read_text() == twin.read_text(), path.name
    again = st.SentenceTransformer(str(tmp_path / "after"), device="cpu")
    assert type(again[0].model) is transformers.BertModel
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=2e-5)


def test_what_other_processes_get(tiny: Path) -> None:
    """sentence-transformers' pools hand the pickled model to their processes."""
    model = sentence_model(tiny, Pooling(sentence_folders.HIDDEN))
    expected = model.encode(TEXTS)
    copied = pickle.loads(pickle.dumps(fastbert.accelerate(model)))
    assert accelerated_in(copied)
    np.testing.assert_allclose(copied.encode(TEXTS), expected, atol=2e-5)


def test_cross_encoder(tiny: Path, packed: list[bool]) -> None:
    torch.manual_seed(0)
    model = st.CrossEncoder(str(tiny), num_labels=1, device="cpu")
    pairs = [("the cat", text) for text in TEXTS]
    expected, ranks = model.predict(pairs), model.rank("the cat", TEXTS)
    fastbert.accelerate(model)
    np.testing.assert_allclose(model.predict(pairs), expected, atol=2e-5)
    assert [one["corpus_id"] for one in model.rank("the cat", TEXTS)] == [
        one["corpus_id"] for one in ranks
    ]
    assert packed and not any(packed) and not reasons(model)


def test_sparse_encoder(tiny: Path, packed: list[bool]) -> None:
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    torch.manual_seed(0)
    model = st.SparseEncoder(
        modules=[MLMTransformer(str(tiny)), SpladePooling("max")], device="cpu"
    ).eval()
    expected = model.encode(TEXTS, convert_to_sparse_tensor=False)
    fastbert.accelerate(model)
    same(expected, model.encode(TEXTS, convert_to_sparse_tensor=False))
    assert packed and not any(packed) and not reasons(model)


def test_modules_around_modules() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"one": plain("BertModel")})

        def forward(self, **given: Any) -> torch.Tensor:
            out: torch.Tensor = self.inner["one"](**given).last_hidden_state.mean(dim=1)
            return out

    holder = Holder()
    expected = asked(holder)
    same(expected, served(fastbert.accelerate(holder)))
    same(expected, asked(torch.nn.DataParallel(holder)))


OBJECTS: dict[str, Any] = {
    "a list": lambda model: [model],
    "a dictionary": lambda model: {"encoder": model},
    "an attribute": lambda model: SimpleNamespace(client=SimpleNamespace(model=model)),
    "private names of pydantic": lambda model: SimpleNamespace(
        __pydantic_private__={"_model": model}
    ),
    "slots": lambda model: Slots(model),
    "a set": lambda model: {model},
    "a queue": lambda model: deque([model]),
    "a partial function": lambda model: functools.partial(asked, model=model),
    "a method": lambda model: model.forward,
    "a list of a module": lambda model: aside([model]),
    "a dictionary of lists of a module": lambda model: aside({"all": [model]}),
    "a module that is no part": lambda model: aside(model),
    "a module in a module in a list": lambda model: aside([nn.ModuleList([aside([model])])]),
}


class Slots:
    __slots__ = ("model", "unset")

    def __init__(self, model: Any) -> None:
        self.model = model


def aside(value: Any) -> nn.Module:
    """Hold something past nn.Module, as people do who keep a teacher out of parameters()."""
    module = nn.Linear(2, 2)
    object.__setattr__(module, "teacher", value)
    return module


@pytest.mark.parametrize("how", OBJECTS)
def test_objects_that_hold_one(how: str) -> None:
    theirs, _ = pair("BertModel")
    model = plain("BertModel")
    holder = OBJECTS[how](model)
    assert fastbert.accelerate(holder) is holder
    same(asked(theirs), served(model))
    assert "accelerated" in fastbert.explain(holder)
    fastbert.restore(holder)
    assert type(model) is transformers.BertModel


def test_distributed_wrappers(tmp_path: Path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    theirs, ours = pair("BertForSequenceClassification")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = [DistributedDataParallel(model) for model in (theirs, fastbert.restore(ours))]
        fastbert.accelerate(wrapped[1])
        for model in wrapped:
            model(
                input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 1, 0])
            ).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        same(one.grad, other.grad, 1e-4)


def test_accelerating_while_another_thread_serves() -> None:
    theirs, _ = pair("BertForSequenceClassification")
    model, expected = plain("BertForSequenceClassification"), asked(theirs)
    stop, wrong = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            try:
                same(expected, asked(model))
            except BaseException as error:  # told in the test's own thread
                wrong.append(error)
                return

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        fastbert.accelerate(model)
        asked(model)
        fastbert.restore(model)
    fastbert.accelerate(model)
    asked(model)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def test_int8_follows_the_parameters_and_leaves_them() -> None:
    theirs, ours = pair("BertForSequenceClassification", quantization="int8")
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    off = float((asked(theirs).logits - asked(ours).logits).abs().max())
    assert 0 < off < 0.3 and "int8" in fastbert.explain(ours)
    same(before, [parameter.detach() for parameter in ours.parameters()], 0.0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    same(theirs(IDS, MASK), ours(IDS, MASK))  # gradients want the parameters themselves
    for model in (theirs, ours):
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight.mul_(-1)
            model.bert.embeddings.LayerNorm.weight.mul_(1.5)
    assert float((asked(theirs).logits - asked(ours).logits).abs().max()) < 0.3
    first = asked(ours)
    same(first, asked(ours), 0.0)
    fused = torch.optim.AdamW(ours.parameters(), lr=0.3, fused=True)
    ours(IDS, MASK).logits.sum().backward()
    fused.step()
    fused.zero_grad()
    theirs.load_state_dict(ours.state_dict())
    assert float((asked(theirs).logits - asked(ours).logits).abs().max()) < 1.0
    assert float((first.logits - asked(ours).logits).abs().max()) > 1.0


# Refusals


class Other(nn.Module):
    """A model that holds no encoder."""


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "another library's": (Other, {}, TypeError, "no encoder in this Other.*BertModel"),
    "a name": (
        lambda: "bert-base",
        {},
        TypeError,
        "no encoder in this str.*load the model that 'bert-base' names first",
    ),
    "a folder": (lambda: Path("here"), {}, TypeError, "load the model that 'here' names"),
    "nothing": (lambda: None, {}, TypeError, "give the model itself"),
    "a class": (lambda: transformers.BertModel, {}, TypeError, "BertModel is a class: load"),
    "a function": (lambda: asked, {}, TypeError, "give the model that it calls"),
    "a recording": (lambda: recorded(), {}, TypeError, "torch recorded.*accelerate the model"),
    "an exported model": (lambda: exported(), {}, TypeError, "torch recorded its operations"),
    "another family": (
        lambda: of_family("GPT2", n_layer=1, n_embd=8, n_head=1, vocab_size=9),
        {},
        TypeError,
        "of GPT2Model, attention alone can run on kernels .register_attention",
    ),
    "a family without that": (
        lambda: of_family("DebertaV2", **_SIZES),
        {},
        TypeError,
        "the family of DebertaV2Model is none of its own",
    ),
    "a decoder of ours": (
        lambda: of_family("Apertus", **_SIZES, pad_token_id=0),
        {},
        TypeError,
        "use fastbert.ApertusModel in the place of transformers' class",
    ),
    "ours": (
        lambda: fastbert.BertModel(fastbert.BertConfig(num_hidden_layers=1, vocab_size=9)),
        {},
        TypeError,
        "model of fastbert, which runs on its kernels already",
    ),
    "a meta model": (lambda: meta(), {}, ValueError, "device meta.*load it"),
    "quantised": (
        lambda: quantised(),
        {},
        ValueError,
        "quantised by another library.*bitsandbytes",
    ),
    "quantised by nobody knows whom": (
        lambda: quantised(None),
        {},
        ValueError,
        "quantised by another library, and only",
    ),
    "a backend": (lambda: plain("BertModel"), {"backend": "avx"}, ValueError, "no backend 'avx'"),
    "training": (lambda: plain("BertModel"), {"training": "x"}, ValueError, "training must be"),
    "precision": (lambda: plain("BertModel"), {"quantization": "int4"}, ValueError, "int8"),
}


def meta() -> Any:
    with torch.device("meta"):
        return transformers.BertModel(plain("BertModel").config)


def quantised(method: str | None = "bitsandbytes") -> Any:
    model = plain("BertModel")
    if method is None:
        model.is_quantized = True
    else:
        model.config.quantization_config = {"quant_method": method, "load_in_8bit": True}
    return model


_SIZES: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def of_family(family: str, **sizes: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, f"{family}Model")(config)


def recorded() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))


def exported() -> Any:
    return torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_sentences(what: str) -> None:
    make, options, kind, words = REFUSED[what]
    model = make()
    with pytest.raises(kind, match=f"(?s){words}") as caught:
        fastbert.accelerate(model, **options)
    assert str(caught.value).endswith(".")
    assert not accelerated_in(model)


def test_nothing_is_half_done() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.other = plain("BertModel"), quantised()

    model = Both()
    with pytest.raises(ValueError, match="quantised"):
        fastbert.accelerate(model)
    assert type(model.fine) is transformers.BertModel and not accelerated_in(model)


@pytest.mark.filterwarnings("ignore:A pass of the accelerated")
def test_bad_arguments_get_the_errors_of_the_original() -> None:
    theirs, ours = pair("BertModel")
    for given in (
        {},
        {"input_ids": IDS, "inputs_embeds": torch.zeros(4, 7, 32)},
        {"input_ids": IDS.float()},
        {"input_ids": IDS, "attention_mask": MASK[:, :3]},
        {"input_ids": IDS + 10_000},
        {"input_ids": torch.zeros(1, 999, dtype=torch.long)},
    ):
        with pytest.raises((ValueError, RuntimeError, IndexError, TypeError)):
            theirs(**given)
        with pytest.raises((ValueError, RuntimeError, IndexError, TypeError)):
            ours(**given)
    same(asked(theirs), asked(ours))


def test_weights_are_not_copied() -> None:
    _, ours = pair("BertModel")
    asked(ours)
    (shell,) = shells(ours)
    theirs = {tensor.data_ptr() for tensor in ours.parameters()}
    assert {tensor.data_ptr() for tensor in shell.parameters()} == theirs  # type: ignore[operator]
