"""A family in a file of its own: `register` makes it one for everything that loads by model type.

And what is computed is what its names and its parts say, or it is refused: names that give two
parts one place would let layers share weights, or leave all of them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastbert
from fastbert.kernels import native
from fastbert.layers.linear import Linear, project
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import Encoding
from fastbert.modeling.parameter_names import AttentionNames, ParameterNames
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.models import auto
from fastbert.outputs import BaseModelOutput
from fastbert.tools.verify import verify

needs_kernels = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "stone", "rolls", "down", "hill"]
LENGTHS = (1, 7, 33)
MASK = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
IDS = torch.randint(1, 10, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK


class PebbleConfig(PreTrainedConfig):
    model_type = "pebble"
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "ffn_width",
        "hidden_act": "act",
        "hidden_dropout_prob": "drop",
        "attention_probs_dropout_prob": "drop",
    }

    vocab_size: int = 10
    width: int = 64
    n_layers: int = 2
    n_heads: int = 4
    ffn_width: int = 96
    act: str = "relu"
    drop: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 40
    initializer_range: float = 0.3
    layer_norm_eps: float = 1e-6
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


class PebblePreTrainedModel(PreTrainedModel):
    config_class = PebbleConfig
    base_model_prefix = "pebble"


NAMES = ParameterNames(
    word="stem.word_table",
    position="stem.place_table",
    token_type=None,
    embedding_norm="stem.scale",
    attention=AttentionNames(
        query="stack.N.mix.q_in",
        key="stack.N.mix.k_in",
        value="stack.N.mix.v_in",
        output="stack.N.mix.out",
        norm="stack.N.mix_scale",
    ),
    cross_attention=None,
    intermediate="stack.N.ffn.up",
    output="stack.N.ffn.down",
    output_norm="stack.N.ffn_scale",
    pooler=None,
)
# The same places in BERT.
IN_BERT = {
    "stem.word_table": "embeddings.word_embeddings",
    "stem.place_table": "embeddings.position_embeddings",
    "stem.scale": "embeddings.LayerNorm",
    "stack.": "encoder.layer.",
    "mix.q_in": "attention.self.query",
    "mix.k_in": "attention.self.key",
    "mix.v_in": "attention.self.value",
    "mix.out": "attention.output.dense",
    "mix_scale": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_scale": "output.LayerNorm",
}


class PebbleModel(PebblePreTrainedModel, BertLikeModel):
    parameter_names = NAMES
    output_class = BaseModelOutput


class _PebbleHead(PebblePreTrainedModel, tasks.HeadModel):
    encoder_class = PebbleModel


class PebbleForMaskedLM(_PebbleHead, NamedVocabularyHead, tasks.ForMaskedLM):
    head_names = VocabularyNames(dense="guess.dense", norm="guess.scale", decoder="guess.words")
    _tied_weights_keys = {"guess.words.weight": "pebble.stem.word_table.weight"}


class PebbleForSequenceClassification(_PebbleHead, tasks.ForSequenceClassification):
    pooled = False

    def build_head(self, config: Any) -> None:
        self.classifier = Linear(config.width, config.num_labels)

    def classify(self, encoding: Encoding) -> Tensor:
        return project(self.classifier, self.dropped(encoding.first_tokens()), encoding.plan)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(auto, "_REGISTERED", {})
    fastbert.AutoConfig.register("pebble", PebbleConfig)
    fastbert.AutoModel.register(PebbleConfig, PebbleModel)
    fastbert.AutoModelForMaskedLM.register(PebbleConfig, PebbleForMaskedLM)
    kind = fastbert.AutoModelForSequenceClassification
    kind.register(PebbleConfig, PebbleForSequenceClassification)
    yield


def pebble(kind: Any = PebbleModel) -> Any:
    torch.manual_seed(0)
    return kind(PebbleConfig()).eval()


def saved(kind: Any, folder: Path) -> str:
    pebble(kind).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
    # The second text of a pair is of type 1, for which there is no table.
    inputs = ["input_ids", "attention_mask"]
    tokenizer = fastbert.BertTokenizer(
        str(vocabulary), model_max_length=40, model_input_names=inputs
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def hidden(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS, attention_mask=MASK)[0][MASK.bool()]
    return found


def test_it_computes_what_bert_computes() -> None:
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_act="relu",
        max_position_embeddings=40,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    theirs.embeddings.token_type_embeddings.weight.data.zero_()
    ours = pebble()
    renamed = {}
    for name, tensor in ours.state_dict().items():
        for here, there in IN_BERT.items():
            name = name.replace(here, there)
        renamed[name] = tensor
    found = theirs.load_state_dict(renamed, strict=False)
    assert found.missing_keys == ["embeddings.token_type_embeddings.weight"]
    assert not found.unexpected_keys
    torch.testing.assert_close(hidden(ours), hidden(theirs), rtol=0, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantization": "int8"}])
def test_verify_compares_the_backends(
    registered: None, options: dict[str, Any], tmp_path: Path
) -> None:
    report = verify(saved(PebbleForMaskedLM, tmp_path), **options)
    assert report.passed, str(report)


def test_everything_loads_it_by_its_model_type(registered: None, tmp_path: Path) -> None:
    masked = saved(PebbleForMaskedLM, tmp_path / "masked")
    labels = saved(PebbleForSequenceClassification, tmp_path / "labels")
    assert type(fastbert.AutoConfig.from_pretrained(masked)) is PebbleConfig
    assert type(fastbert.AutoConfig.for_model("pebble", width=32)) is PebbleConfig
    model = fastbert.AutoModelForMaskedLM.from_pretrained(masked)
    assert torch.equal(hidden(model), hidden(pebble(PebbleForMaskedLM)))
    assert type(fastbert.AutoModel.from_config(PebbleConfig())) is PebbleModel
    assert len(fastbert.pipeline("fill-mask", masked)("the stone [MASK] down")) == 5
    answer = fastbert.pipeline("text-classification", labels)("the stone rolls")
    assert answer[0]["label"].startswith("LABEL_")
    assert fastbert.CrossEncoder.from_pretrained(labels).predict([("a", "b")]).shape == (1, 2)
    texts = ["the stone", "the stone rolls down the hill"]
    exact, coarse = (
        fastbert.SentenceEncoder.from_pretrained(masked, quantization=how).encode(texts)
        for how in (None, "int8")
    )
    cosine = torch.cosine_similarity(torch.as_tensor(exact), torch.as_tensor(coarse))
    assert exact.shape == (2, 64) and float(cosine.min()) > 0.99
    assert "layers in int8" in str(
        fastbert.explain(fastbert.AutoModel.from_pretrained(masked, quantization="int8"))
    )
    with pytest.raises(ValueError, match="no pebble model for the task TokenClassification"):
        fastbert.AutoModelForTokenClassification.from_pretrained(masked)


class OtherConfig(PebbleConfig):
    model_type = "bert"


class OtherModel(PebbleModel):
    config_class = OtherConfig


def test_what_is_not_registered() -> None:
    with pytest.raises(ValueError, match=r"'pebble', which fastbert does not have.*\.register"):
        fastbert.AutoModel.from_config(PebbleConfig())


def test_what_cannot_be_registered(registered: None) -> None:
    with pytest.raises(ValueError, match="model_type of PebbleConfig is 'pebble', not 'stone'"):
        fastbert.AutoConfig.register("stone", PebbleConfig)
    with pytest.raises(TypeError, match="derived from fastbert's PreTrainedConfig"):
        fastbert.AutoConfig.register("bert", transformers.BertConfig)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="derived from fastbert's PreTrainedModel"):
        fastbert.AutoModel.register(PebbleConfig, nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="config_class of PebbleModel is PebbleConfig, not Other"):
        fastbert.AutoModel.register(OtherConfig, PebbleModel)
    with pytest.raises(ValueError, match="'bert' is taken"):
        fastbert.AutoModel.register(OtherConfig, OtherModel)
    assert type(fastbert.AutoModel.from_config(fastbert.BertConfig())) is fastbert.BertModel
    fastbert.AutoModel.register(OtherConfig, OtherModel, exist_ok=True)
    assert type(fastbert.AutoModel.from_config(OtherConfig())) is OtherModel


REFUSED = {
    "no number": ({"intermediate": "up"}, "intermediate is 'up'; every layer has its own"),
    "a number too many": ({"word": "words.N"}, "word is 'words.N'; the encoder has one"),
    "the layer is the root": ({"output": "N.down"}, "counted from the encoder"),
    "a parameter": ({"word": "stem.word_table.weight"}, "without its last component"),
    "no name": ({"position": ""}, "position is ''"),
    "one place": ({"output_norm": "stack.N.mix_scale"}, "output_norm .* name one place"),
    "one in another": ({"output_norm": "stack.N.ffn.up.scale"}, "or one in the other"),
    "one in the list": ({"embedding_norm": "stack.scale"}, "holds layers alone"),
    "the list itself": ({"pooler": "stack"}, "or one in the other|holds layers alone"),
    "two of one attention": (
        {"attention": replace(NAMES.attention, key="stack.N.mix.q_in")},
        "attention.query .* and attention.key",
    ),
    "two attentions": ({"cross_attention": NAMES.attention}, "name one place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_do_not_say_one_place_each(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        replace(NAMES, **changes)


def test_token_types_may_be_looked_up_in_the_table_of_words() -> None:
    assert replace(NAMES, token_type=NAMES.word).token_type == NAMES.word


class Twice(nn.Module):
    def __init__(self, inner: Linear) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


@pytest.mark.parametrize("name", ["mix.q_in", "mix.v_in", "mix.out", "ffn.up", "ffn.down"])
def test_linear_layers_that_are_something_else(name: str) -> None:
    """They would get the rows of all texts at once, and may look at more than one."""
    model = pebble()
    branch, _, end = f"stack.1.{name}".rpartition(".")
    owner = model.get_submodule(branch)
    built, expected = getattr(owner, end), hidden(model)
    setattr(owner, end, Twice(built))
    where = re.escape(f"stack.1.{name}")
    with pytest.raises(ValueError, match=f"{where} is a Twice, .* says in its module_table"):
        hidden(model)
    plain = nn.Linear(built.in_features, built.out_features)
    plain.load_state_dict(built.state_dict())
    for part in (plain, built):
        setattr(owner, end, part)
        torch.testing.assert_close(hidden(model), expected, rtol=0, atol=2e-5)
        handle = part.register_forward_hook(lambda part, given, result: result * 2)
        shifted = hidden(model)
        handle.remove()
        assert not torch.allclose(shifted, expected, rtol=0, atol=1e-3)
