"""Families that are added by the public mechanism alone.

One is built by docs/adding-a-family.md; another is made up, and differs from BERT wherever it may.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers
from torch import Tensor

import fastbert
from fastbert.kernels import native
from fastbert.layers.linear import Linear, project
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import Encoding
from fastbert.modeling.parameter_names import AttentionNames, EncoderShape, ParameterNames
from fastbert.modeling.quantization import quantize
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.models import auto
from fastbert.ops.activations import Activation
from fastbert.outputs import BaseModelOutput, BaseModelOutputWithPooling

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-family.md"
IDS, MASK = oracle.random_ids(), oracle.padded_mask()
needs_kernels = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


# The page


@pytest.fixture(scope="module")
def page() -> Iterator[types.ModuleType]:
    if not PAGE.exists():
        pytest.skip("run from a checkout")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    family = types.ModuleType("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "_REGISTERED", {})
        exec(compile("\n\n".join(blocks), str(PAGE), "exec", dont_inherit=True), vars(family))
        yield family


@pytest.mark.parametrize(
    "task", ["Model", "ForMaskedLM", "ForTokenClassification", "ForSequenceClassification"]
)
def test_the_family_of_the_page_is_transformers(page: types.ModuleType, task: str) -> None:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "vocab_size": 61}
    config = transformers.DistilBertConfig(attn_implementation="eager", **sizes)
    theirs = getattr(transformers, f"DistilBert{task}")(config).double().eval()
    oracle.fill(theirs)
    theirs.tie_weights()
    ours = getattr(page, f"DistilBert{task}")(page.DistilBertConfig(**sizes)).double().eval()
    found = ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not found.missing_keys and not found.unexpected_keys
    with torch.no_grad():
        expected = theirs(IDS, attention_mask=MASK)
        oracle.compared(expected, ours(IDS, attention_mask=MASK), MASK, 1e-9, task)
        kernels = ours.float()
        oracle.compared(expected, kernels(IDS, attention_mask=MASK), MASK, 2e-5, task)


TABLE = r"^\| ((?:`\w+`(?:, )?)+) \| .* \| (?:`([\w.]+)`(?: \.\.\.)?|None) \|$"


def test_the_page_names_every_part() -> None:
    """Its table of `ParameterNames` has each field, with what it is when left out."""
    if not PAGE.exists():
        pytest.skip("run from a checkout")
    text = PAGE.read_text(encoding="utf-8").partition("| `ParameterNames` |")[2]
    rows = re.findall(TABLE, text.partition("\n\n")[0], re.M)
    told = {name: path for names, path in rows for name in re.findall(r"\w+", names)}
    assert told.keys() == {one.name for one in fields(ParameterNames)}
    for name, path in told.items():
        default = getattr(ParameterNames(), name)
        if isinstance(default, AttentionNames):
            assert default.query.startswith(path)
        else:
            assert default == (path or None), name


@needs_kernels
def test_the_family_of_the_page_is_known_and_proved(
    page: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = page.DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=61)
    page.DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    for task in ("", "ForMaskedLM", "ForTokenClassification", "ForSequenceClassification"):
        kind = getattr(fastbert, f"AutoModel{task}").class_for(config)
        assert kind is getattr(page, f"DistilBert{task or 'Model'}")
    page.prove(str(tmp_path))
    assert "layers in int8" in capsys.readouterr().out


# A made-up family: lists outside of layers, narrow tables, no token types, relu, no pooler.


class SkinkConfig(PreTrainedConfig):
    model_type = "skink"
    attribute_map = {
        "hidden_size": "wide",
        "num_hidden_layers": "deep",
        "num_attention_heads": "heads",
        "hidden_act": "curve",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "dropout",
    }

    vocab_size: int = 61
    wide: int = 48
    narrow: int = 20
    deep: int = 3
    heads: int = 4
    intermediate_size: int = 100
    curve: str = "relu"
    dropout: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 24
    initializer_range: float = 0.25
    layer_norm_eps: float = 1e-6
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


class SkinkPreTrainedModel(PreTrainedModel):
    config_class = SkinkConfig
    base_model_prefix = "skink"


class SkinkModel(SkinkPreTrainedModel, BertLikeModel):
    parameter_names = ParameterNames(
        word="words",
        position="places",
        token_type=None,
        embedding_norm="norm_in",
        embedding_projection="widen",
        attention=AttentionNames(
            query="looks.N.q",
            key="looks.N.k",
            value="looks.N.v",
            output="looks.N.back",
            norm="look_norms.N",
        ),
        cross_attention=None,
        intermediate="thoughts.N.one",
        output="thoughts.N.two",
        output_norm="thought_norms.N",
        pooler=None,
    )
    output_class = BaseModelOutput

    def encoder_shape(self) -> EncoderShape:
        return replace(super().encoder_shape(), width=self.config.narrow)


class _SkinkHead(SkinkPreTrainedModel, tasks.HeadModel):
    encoder_class = SkinkModel


class SkinkForMaskedLM(_SkinkHead, NamedVocabularyHead, tasks.ForMaskedLM):
    head_names = VocabularyNames(
        dense="guess.down", norm="guess.norm", decoder="guess.word", bias="guess.bias"
    )
    _tied_weights_keys = {
        "guess.word.weight": "skink.words.weight",
        "guess.word.bias": "guess.bias",
    }

    def head_width(self) -> int:
        return int(self.config.narrow)


class SkinkForSequenceClassification(_SkinkHead, tasks.ForSequenceClassification):
    pooled = False
    judge: Linear

    def build_head(self, config: Any) -> None:
        self.judge = Linear(config.hidden_size, config.num_labels)

    def classify(self, encoding: Encoding) -> Tensor:
        return project(self.judge, self.dropped(encoding.first_tokens()), encoding.plan)


class LeakyModel(SkinkModel):
    """The same encoder, whose activation has a number of its own."""

    def encoder_shape(self) -> EncoderShape:
        slope = getattr(self.config, "slope", 0.25)
        parameters = () if slope is None else (slope,)
        return replace(super().encoder_shape(), activation=Activation("leaky_relu", parameters))


class SkinkOverAPooler(_SkinkHead, tasks.ForSequenceClassification):
    pass


SKINKS = [SkinkModel, SkinkForMaskedLM, SkinkForSequenceClassification, LeakyModel]


def skink(kind: Any) -> Any:
    torch.manual_seed(0)
    return kind(SkinkConfig()).eval()


@needs_kernels
@pytest.mark.parametrize("kind", SKINKS)
def test_kernels_against_the_reference(kind: Any) -> None:
    model = skink(kind)
    exact = copy.deepcopy(model).double()
    model.set_backend("cpu", strict=True)
    with torch.no_grad():
        together = model(IDS, attention_mask=MASK)[0]
        encoder: Any = model.base_model.encoder_cache._entry.encoder
        assert encoder.embeds, "the tables are not part of the native pass"
        oracle.close(exact(IDS, attention_mask=MASK)[0], together, MASK, 2e-5, kind.__name__)
        for row in range(len(IDS)):
            alone = model(IDS[row : row + 1], attention_mask=MASK[row : row + 1])[0]
            assert torch.equal(alone[0], together[row])


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}], ids=str)
@pytest.mark.parametrize("kind", SKINKS)
def test_it_is_saved_and_loaded(kind: Any, options: dict[str, str], tmp_path: Path) -> None:
    model = skink(kind)
    model.save_pretrained(tmp_path)
    again, report = kind.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not any(report.values()), report
    again.save_pretrained(tmp_path / "again")
    last = kind.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        expected, got, kept = (m(IDS, attention_mask=MASK)[0] for m in (model, again, last))
    assert torch.equal(got, kept)
    if not options:
        assert torch.equal(got, expected)
    cosine = torch.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0)
    assert float(cosine) > 0.995


def test_it_is_trained_resized_and_pruned() -> None:
    model = skink(SkinkForMaskedLM)
    assert model.guess.word.weight is model.skink.words.weight
    loss = model.train()(IDS, attention_mask=MASK, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    model.eval().resize_token_embeddings(70)
    assert model.guess.word.weight is model.skink.words.weight
    assert model.guess.word.bias is model.guess.bias
    model.prune_heads({0: [1, 2]})
    assert model.skink.looks[0].q.out_features == 24
    assert model(IDS).logits.shape == (*IDS.shape, 70)


@needs_kernels
def test_the_number_of_an_activation_counts() -> None:
    """Prepared encoders follow it too; 0 makes it relu, and none is 0.01."""
    relu = skink(SkinkModel)
    with torch.no_grad():
        found = {}
        for slope in (0.25, 0.0, 0.01, None):
            torch.manual_seed(0)
            leaky = LeakyModel(SkinkConfig(slope=slope)).eval()
            found[slope] = leaky(IDS)[0]
        assert torch.equal(found[None], found[0.01])
        torch.testing.assert_close(found[0.0], relu(IDS)[0], rtol=0, atol=1e-5)
        for slope in (0.25, 0.01):
            assert float((found[slope] - found[0.0]).abs().max()) > 1e-3


def test_token_types_without_a_table() -> None:
    model = skink(SkinkModel)
    with torch.no_grad():
        expected = model(IDS)[0]
        assert torch.equal(model(IDS, token_type_ids=torch.zeros_like(IDS))[0], expected)
        with pytest.raises(IndexError, match="this model has no table for them"):
            model(IDS, token_type_ids=torch.ones_like(IDS))


def test_a_head_over_a_pooler_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="without one"):
        skink(SkinkOverAPooler)(IDS)


def test_what_a_family_has_no_names_for() -> None:
    config = SkinkConfig(position_embedding_type="relative_key")
    with pytest.raises(ValueError, match="SkinkModel has no relative positions"):
        SkinkModel(config)
    with pytest.raises(ValueError, match="SkinkModel has no cross-attention"):
        SkinkModel(SkinkConfig(is_decoder=True, add_cross_attention=True))


def test_a_layer_that_is_something_else() -> None:
    model = skink(SkinkModel)
    model.looks[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"looks\.1 is a Identity, .* says in its module_table"):
        model(IDS)


# What BERT has and a family may lack


class OtherBert(BertLikeModel):
    config_class = fastbert.BertConfig
    base_model_prefix = "bert"


class WithoutTokenTypes(OtherBert):
    parameter_names = ParameterNames(token_type=None)


class WithoutPositions(OtherBert):
    parameter_names = ParameterNames(position=None)


class WithoutPooler(OtherBert):
    parameter_names = ParameterNames(pooler=None)


class WithoutAnything(OtherBert):
    parameter_names = ParameterNames(token_type=None, position=None, pooler=None)
    output_class = BaseModelOutput


class WithOutput(OtherBert):
    output_class = BaseModelOutput


class WithPooledOutput(OtherBert):
    parameter_names = ParameterNames(token_type=None)
    output_class = BaseModelOutputWithPooling


# Class, whether it has token types, positions and a pooler's output, and settings.
LACKING: dict[str, tuple[type[OtherBert], bool, bool, bool, dict[str, int]]] = {
    "no types": (WithoutTokenTypes, False, True, True, {}),
    "types of size 0": (OtherBert, False, True, True, {"type_vocab_size": 0}),
    "no positions": (WithoutPositions, True, False, True, {}),
    "no pooler": (WithoutPooler, True, True, False, {}),
    "nothing": (WithoutAnything, False, False, False, {}),
    "another output": (WithOutput, True, True, False, {}),
    "pooled output, no types": (WithPooledOutput, False, True, True, {}),
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "float32": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "int8": quantize,
}


@needs_kernels
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("precision", CHANGES)
@pytest.mark.parametrize("case", LACKING)
def test_an_absent_part_is_one_that_adds_zero(case: str, precision: str, backend: str) -> None:
    kind, types_there, positions_there, pools, settings = LACKING[case]
    whole = fastbert.BertModel(fastbert.BertConfig(**oracle.FAMILIES["Bert"])).eval()
    oracle.fill(whole)
    with torch.no_grad():
        if not types_there:
            whole.embeddings.token_type_embeddings.weight.zero_()
        if not positions_there:
            whole.embeddings.position_embeddings.weight.zero_()
        part = kind(kind.config_class(**{**oracle.FAMILIES["Bert"], **settings})).eval()
        found = part.load_state_dict(whole.state_dict(), strict=False)
        assert not found.missing_keys
        whole, part = CHANGES[precision](whole), CHANGES[precision](part)
        for model in (whole, part):
            model.set_backend(backend)
        embeds = whole.get_input_embeddings()(IDS)
        for inputs in ({"input_ids": IDS}, {"inputs_embeds": embeds}):
            expected = whole(**inputs, attention_mask=MASK)
            got = part(**inputs, attention_mask=MASK)
            # Column 0 is computed for a pooler even where it is masked.
            seen = MASK.bool() if not pools else torch.ones_like(MASK).bool()
            assert torch.equal(got.last_hidden_state[seen], expected.last_hidden_state[seen])
            assert ("pooler_output" in got) == pools
            if pools:
                assert torch.equal(got.pooler_output, expected.pooler_output)
            assert len(part(**inputs, return_dict=False)) == len(got)
    if backend == "cpu":
        encoder: Any = part.encoder_cache._entry.encoder
        assert encoder.embeds, "the tables are not part of the native pass"
