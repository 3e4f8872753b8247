"""A compiled model computes what it computes uncompiled: served, asked for more, and trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastbert


@pytest.fixture
def model() -> fastbert.BertModel:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=99,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch._dynamo.reset()
    return fastbert.BertModel(config).eval()


def ragged(seqlen: int) -> dict[str, Tensor]:
    mask = torch.ones(3, seqlen, dtype=torch.int64)
    mask[1, seqlen // 2 :] = 0
    mask[2, 1:] = 0
    return {"input_ids": torch.randint(0, 99, (3, seqlen)), "attention_mask": mask}


def test_inference(model: fastbert.BertModel) -> None:
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for seqlen in (7, 12, 30):
            batch = ragged(seqlen)
            ours, plain = compiled(**batch), model(**batch)
            assert torch.equal(ours.last_hidden_state, plain.last_hidden_state)
            assert torch.equal(ours.pooler_output, plain.pooler_output)


def test_hidden_states(model: fastbert.BertModel) -> None:
    compiled = torch.compile(model, backend="aot_eager")
    batch = ragged(9)
    with torch.no_grad():
        ours = compiled(**batch, output_hidden_states=True)
        plain = model(**batch, output_hidden_states=True)
    for one, other in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert torch.equal(one, other)


def test_training(model: fastbert.BertModel) -> None:
    model.train()
    compiled = torch.compile(model, backend="aot_eager")
    batch = ragged(9)
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        run(**batch).last_hidden_state.square().sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[1] and gradients[0].keys() >= gradients[1].keys()
    for name, gradient in gradients[0].items():
        # Of an output that was not used, a whole graph gives zeros where plain autograd gives none.
        expected = gradients[1].get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, msg=name)


def breaks(model: torch.nn.Module, **batch: Tensor) -> tuple[int, int]:
    """Graphs and the breaks between them."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(**batch)
    return found.graph_count, max(found.graph_break_count, 0)


def test_graph_breaks(model: fastbert.BertModel) -> None:
    """Without gradients, one native call and nothing to trace. With them, a break where the plan is
    settled, and one where the mask decides how many rows there are; torch counts the graphs that
    hold an op. Outputs are built within a graph: their dictionaries take part in no break."""
    batch = ragged(9)
    dense = {"input_ids": batch["input_ids"]}
    with torch.no_grad():
        assert breaks(model, **batch) == (0, 0)
    assert breaks(model.train(), **batch) == (2, 1)
    assert breaks(model, **dense) == (2, 1)


def test_graph_breaks_of_other_families() -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64}
    models = [
        fastbert.CamembertForTokenClassification(fastbert.CamembertConfig(**sizes)),
        fastbert.RemBertForSequenceClassification(fastbert.RemBertConfig(**sizes)),
        fastbert.FlaubertModel(
            fastbert.FlaubertConfig(n_words=99, emb_dim=32, n_layers=2, n_heads=2)
        ),
    ]
    for made in models:
        _, found = breaks(made.train(), **ragged(9))
        assert found <= 2, type(made).__name__
