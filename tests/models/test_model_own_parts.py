"""Parts of one's own: what a constructor made stays what it was, unless the file has it.

Loading builds only the package's own layers without memory. Recurrent and convolutional layers,
norms, plain parameters and buffers that somebody adds are built for real, so that whatever the
checkpoint lacks has the values of its constructor (or of `_init_weights`), never zeros.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn

import fastbert

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
IDS = torch.tensor([[1, 2, 3, 4]])


class WithParts(fastbert.BertPreTrainedModel):
    """A BERT with parts of every kind behind it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = fastbert.BertModel(config)
        self.lstm = nn.LSTM(16, 8, bidirectional=True, batch_first=True)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3, padding=1))
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mix = nn.Parameter(torch.full((3,), 0.25))
        self.register_buffer("steps", torch.arange(4.0))
        self.register_buffer("table", torch.arange(4.0) + 1, persistent=False)
        self.head = nn.Linear(16, 3)
        self.twin = nn.Linear(16, 3)
        self.twin.weight = self.head.weight
        self.post_init()

    def forward(self, ids: Tensor) -> Tensor:
        """Run all parts."""
        hidden = self.bert(ids).last_hidden_state
        hidden, _ = self.lstm(hidden)
        hidden = self.norm(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        hidden, _ = self.attention(hidden, hidden, hidden)
        out: Tensor = self.head(hidden) + self.twin(hidden) * self.mix * self.table[1]
        return out


class Unnamed(fastbert.PreTrainedModel):
    """A class that names no base model prefix."""

    config_class = fastbert.BertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = fastbert.BertModel(config)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.post_init()

    def forward(self, ids: Tensor) -> Tensor:
        """Run both parts."""
        out: Tensor = self.gru(self.encoder(ids).last_hidden_state)[0]
        return out


class Larger(fastbert.BertModel):
    """An encoder with one part more."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.gru = nn.GRU(16, 8, batch_first=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fastbert.BertModel(fastbert.BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_what_the_file_lacks_is_built_for_real(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"no weights for .*lstm\.weight_hh_l0.*need training"):
        model: Any = WithParts.from_pretrained(folder)
    for name, parameter in model.lstm.named_parameters():
        # As reset_parameters has it: uniform within 1 / sqrt(8).
        assert 0.05 < float(parameter.detach().std()) < 0.354, name
    assert float(model.conv.weight.detach().std()) > 0.05
    assert torch.equal(model.norm.running_var, torch.ones(16))
    assert torch.equal(model.norm.weight, torch.ones(16))
    assert float(model.attention.in_proj_weight.detach().std()) > 0.05
    assert torch.equal(model.mix, torch.full((3,), 0.25))
    assert torch.equal(model.steps, torch.arange(4.0))
    assert torch.equal(model.table, torch.arange(4.0) + 1)
    # As the model's own _init_weights has it.
    assert 0.01 < float(model.head.weight.detach().std()) < 0.03
    assert model.twin.weight is model.head.weight
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.isfinite(model(IDS)).all()


@pytest.mark.parametrize("kind", [WithParts, Unnamed, Larger])
def test_what_the_file_has_is_what_is_computed_with(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = kind(fastbert.BertConfig(**SIZES)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kind.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        one, two = model(IDS), again(IDS)
    one, two = (x if isinstance(x, Tensor) else x.last_hidden_state for x in (one, two))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", [Unnamed, Larger])
def test_an_encoder_is_found_under_whatever_name(kind: Any, folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"no weights for gru\.bias_hh_l0"):
        model = kind.from_pretrained(folder)
    expected = fastbert.BertModel.from_pretrained(folder).state_dict()
    held = model.base_model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(held[name], tensor), name
    assert float(model.gru.weight_hh_l0.detach().std()) > 0.05


def test_precision_and_buffers(folder: Path) -> None:
    with pytest.warns(UserWarning, match="need training"):
        model: Any = WithParts.from_pretrained(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.table.dtype == torch.float32  # as a constructor made it that knows no precision


def test_a_model_within_a_model_is_loaded_by_its_constructor(folder: Path) -> None:
    class Nested(fastbert.BertPreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.bert = fastbert.BertModel(config)
            self.teacher = fastbert.BertModel.from_pretrained(folder)

    with pytest.warns(UserWarning, match=r"teacher\."):
        model: Any = Nested.from_pretrained(folder)
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(model.teacher.state_dict()[name], tensor), name


def test_bases_are_public() -> None:
    assert fastbert.PretrainedConfig is fastbert.PreTrainedConfig
    assert issubclass(fastbert.BertConfig, fastbert.PreTrainedConfig)
    for family in oracle.TEXT_FAMILIES:
        base = getattr(fastbert, f"{family}PreTrainedModel")
        assert issubclass(base, fastbert.PreTrainedModel)
        assert issubclass(getattr(fastbert, f"{family}Model"), base)
