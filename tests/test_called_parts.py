"""Modules define what a model computes: a part that is not as it was built is called.

The encoder reads parameters out of its modules and leaves the computing to kernels. A snapshot
compares what stands there with what was built; whatever somebody put in a part's place, hooked, or
set otherwise is called as torch would call it. What is right comes from transformers' modules with
the same change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastbert
from fastbert.runtime.plan import Unavailable

sys.path.insert(0, str(Path(__file__).parent))

from family_pairs import IDS, MASK, SIZES, outputs, pair, same


class Gate(nn.Module):
    """An attention of one's own, which sees no other token."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.a, self.b = old.query, old.value

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **_: Any) -> Any:
        return self.a(hidden_states).sigmoid() * self.b(hidden_states), None


class Mixed(nn.Module):
    """Mixes all columns of the grid, padding too."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return torch.fft.fft2(hidden_states).real, None


class Around(nn.Module):
    """A wrapper that hands attributes on and halves what comes out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        if isinstance(out, Tensor):
            return 0.5 * out
        if isinstance(out, tuple):
            return (0.5 * out[0], *out[1:])
        for name in ("last_hidden_state", "pooler_output"):
            if out.get(name) is not None:
                out[name] = 0.5 * out[name]
        return out


class Mean(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.mean(1)


def doubled(_m: Any, _i: Any, out: Any) -> Any:
    return (2.0 * out[0], *out[1:]) if isinstance(out, tuple) else 2.0 * out


def put(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, make(getattr(owner, name)))

    return change


def sequence(old: nn.Module) -> nn.Module:
    return nn.Sequential(old, nn.Tanh())


def patched(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        part = model.get_submodule(path)
        part.forward = lambda hidden, given: part.dense(hidden) + 0.5 * given

    return change


def hook(path: str) -> Callable[[Any], None]:
    return lambda model: model.get_submodule(path).register_forward_hook(doubled)


def first_column(model: Any) -> None:
    """A hook that counts on the shape (batch, length, hidden)."""

    def add(_m: Any, _i: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 0] += 1.0
        return out

    model.encoder.layer[0].intermediate.dense.register_forward_hook(add)


LAYER = "encoder.layer.1"
CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "attention": put(f"{LAYER}.attention.self", Gate),
    "mixing attention": put(f"{LAYER}.attention.self", lambda _: Mixed()),
    "activation": put(f"{LAYER}.intermediate.intermediate_act_fn", lambda _: nn.ReLU()),
    "norm": put(f"{LAYER}.output.LayerNorm", lambda _: nn.Identity()),
    "projection": put(f"{LAYER}.attention.self.query", sequence),
    "feed-forward": put(f"{LAYER}.intermediate", lambda _: nn.Linear(24, 40)),
    "layer": put(LAYER, Around),
    "pooler": put("pooler", lambda _: Mean()),
    "embeddings": put("embeddings", Around),
    "encoder": put("encoder", Around),
    "forward": patched(f"{LAYER}.output"),
    "hook on embeddings": hook("embeddings.LayerNorm"),
    "hook on words": hook("embeddings.word_embeddings"),
    "hook on a layer": hook(LAYER),
    "hook on an attention": hook(f"{LAYER}.attention.self"),
    "hook on a dropout": hook(f"{LAYER}.output.dropout"),
    "hook on columns": first_column,
    "scaling": lambda model: [setattr(m, "scaling", 1.0) for m in model.modules()],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["bert", "camembert", "rembert", "align"])
def test_what_stands_there_is_called(family: str, change: str) -> None:
    theirs, ours = pair(family)
    if family == "rembert" and change == "scaling":
        pytest.skip("it has no such attribute")
    with torch.no_grad():
        plain = outputs(ours)
    for model in (theirs, ours):
        torch.manual_seed(1)
        CHANGES[change](model)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            same(theirs, ours)
    changed = any(not torch.equal(a, b) for a, b in zip(plain, outputs(ours), strict=True))
    assert changed == (change != "nothing")
    assert ("called as a module" in fastbert.explain(ours)) == changed


@pytest.mark.parametrize("change", ["attention", "mixing attention", "layer", "hook on a layer"])
def test_gradients_flow_through_what_is_called(change: str) -> None:
    theirs, ours = pair("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    found = []
    for model in (theirs.train(), ours.train()):
        CHANGES[change](model)
        sum(value.square().sum() for value in outputs(model)).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=2e-5 * scale, msg=name)


FLAUBERT: dict[str, Callable[[Any], Any]] = {
    "attention": put("attentions.1", Around),
    "feed-forward": put("ffns.1", Around),
    "activation": lambda model: setattr(model.ffns[1], "act", nn.Tanh()),
    "norm": put("layer_norm2.0", lambda _: nn.Identity()),
    "projection": put("ffns.0.lin2", sequence),
    "words": hook("embeddings"),
    "embedding norm": hook("layer_norm_emb"),
}


@pytest.mark.parametrize("change", FLAUBERT)
@pytest.mark.parametrize("family", ["flaubert", "pre_norm"])
def test_parts_of_flaubert(family: str, change: str) -> None:
    theirs, ours = pair(family)
    outputs(ours)
    for model in (theirs, ours):
        FLAUBERT[change](model)
    with torch.no_grad():
        same(theirs, ours)


# In families with paths of their own: a part of each kind, and the modules in it.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "electra": (
        "embeddings", "embeddings.word_embeddings", "embeddings_project", "encoder", LAYER,
        f"{LAYER}.attention.self", f"{LAYER}.intermediate.dense",
    ),
    "distilbert": (
        "embeddings", "embeddings.LayerNorm", "transformer", "transformer.layer.1",
        "transformer.layer.1.attention", "transformer.layer.1.attention.q_lin",
        "transformer.layer.1.ffn", "transformer.layer.1.ffn.activation",
        "transformer.layer.1.ffn.lin2", "transformer.layer.0.sa_layer_norm",
    ),
    "mpnet": (
        "embeddings", "embeddings.LayerNorm", "encoder", "encoder.relative_attention_bias", LAYER,
        f"{LAYER}.attention", f"{LAYER}.attention.attn", f"{LAYER}.attention.attn.o",
        f"{LAYER}.intermediate", f"{LAYER}.output", "pooler",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "path"), [(family, path) for family, paths in ELSEWHERE.items() for path in paths]
)
def test_parts_of_other_families(family: str, path: str) -> None:
    theirs, ours = pair(family)
    with torch.no_grad():
        plain = outputs(ours)
    stack = path in ("encoder", "transformer")  # its answer is no tensor
    for change in ([] if stack else [hook(path)], [put(path, Around)]):
        for model in (theirs, ours):
            for one in change:
                one(model)
        same(theirs, ours)
        with torch.no_grad():
            same(theirs, ours)
            assert torch.equal(plain[-1], outputs(ours)[-1]) == (change == [])
            plain = outputs(ours)


@pytest.mark.parametrize("path", ["transformer.layer.1", LAYER])
def test_weights_of_other_families_that_are_called(path: str) -> None:
    theirs, ours = pair("distilbert" if "transformer" in path else "mpnet")
    for model in (theirs, ours):
        hook(f"{path}.attention")(model)
    given = {"output_hidden_states": True, "output_attentions": True}
    expected, found = (model(IDS, attention_mask=MASK, **given) for model in (theirs, ours))
    for one, other in zip(expected.hidden_states, found.hidden_states, strict=True):
        same_tensor(other[MASK.bool()], one[MASK.bool()])
    for one, other in zip(expected.attentions, found.attentions, strict=True):
        same_tensor(other[0], one[0])


TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM",
         "ForQuestionAnswering", "ForMultipleChoice")  # fmt: skip
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "wrapper": Around,
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("task", TASKS[:4])
@pytest.mark.parametrize("family", ["bert", "camembert", "rembert", "flaubert", *ELSEWHERE])
def test_whatever_is_around_the_encoder_is_called(family: str, task: str, wrapper: str) -> None:
    if family == "flaubert":
        task = {"ForMaskedLM": "WithLMHeadModel", "ForQuestionAnswering":
                "ForQuestionAnsweringSimple"}.get(task, task)  # fmt: skip
    theirs, ours = pair(family, task)
    outputs(ours)
    for model in (theirs, ours):
        name = model.base_model_prefix
        setattr(model, name, WRAPPERS[wrapper](getattr(model, name)))
    with torch.no_grad():
        same(theirs, ours)
        labels = torch.tensor([1, 0, 1])
        if "SequenceClass" in task:
            same(theirs, ours, labels=labels)
        if "QuestionAnswering" in task:
            same(theirs, ours, start_positions=labels, end_positions=labels + 2)
    assert "is called" in fastbert.explain(ours)


def test_an_own_module_in_the_place_of_the_encoder() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(60, 24)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return (self.table(input_ids) * attention_mask[..., None],)

    _, ours = pair("bert", "ForTokenClassification")
    ours.bert = Own()
    expected = ours.classifier(ours.bert(IDS, MASK)[0])
    torch.testing.assert_close(ours(IDS, attention_mask=MASK).logits, expected)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(24, 2, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.inner(hidden_states.transpose(1, 2)).transpose(1, 2)


HEADS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "convolution": ("bert", "ForTokenClassification", put("classifier", lambda _: Convolution())),
    "ends": ("bert", "ForQuestionAnswering", put("qa_outputs", lambda _: Convolution())),
    "transform": ("bert", "ForMaskedLM", put("cls.predictions.transform", sequence)),
    "predictions": ("bert", "ForMaskedLM", hook("cls.predictions")),
    "norm": ("bert", "ForMaskedLM", hook("cls.predictions.transform.LayerNorm")),
    "roberta's norm": ("camembert", "ForMaskedLM", hook("lm_head.layer_norm")),
    "rembert's": ("rembert", "ForMaskedLM", put("cls.predictions.activation", lambda _: nn.ReLU())),
    "distilbert's activation": (
        "distilbert",
        "ForMaskedLM",
        put("activation", lambda _: nn.ReLU()),
    ),
    "distilbert's norm": ("distilbert", "ForMaskedLM", hook("vocab_layer_norm")),
    "electra's norm": ("electra", "ForMaskedLM", hook("generator_predictions.LayerNorm")),
    "electra's decoder": ("electra", "ForMaskedLM", hook("generator_lm_head")),
    "electra's judge": ("electra", "ForPreTraining", hook("discriminator_predictions.activation")),
    "electra's gelu": ("electra", "ForSequenceClassification", hook("classifier.activation")),
    "mpnet's norm": ("mpnet", "ForMaskedLM", hook("lm_head.layer_norm")),
    "mpnet's classifier": ("mpnet", "ForSequenceClassification", hook("classifier.dense")),
    "distilbert's classifier": ("distilbert", "ForSequenceClassification", hook("pre_classifier")),
    "both": ("bert", "ForPreTraining", hook("cls.predictions.transform")),
    "mean": (
        "camembert",
        "ForSequenceClassification",
        put("classifier", lambda _: nn.Sequential(Mean(), nn.Linear(24, 2))),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    family, task, change = HEADS[name]
    theirs, ours = pair(family, task)
    outputs(ours)
    for model in (theirs, ours):
        torch.manual_seed(1)
        change(model)
    with torch.no_grad():
        same(theirs, ours)


@pytest.mark.parametrize("family", ["bert", "camembert", "rembert", "align"])
def test_parts_are_called_by_hand(family: str) -> None:
    theirs, ours = pair(family)
    states = theirs.embeddings(IDS)
    same_tensor(ours.embeddings(IDS), states)
    wide = torch.randn(3, 7, 24)
    given = states if family == "rembert" else wide
    for path, inputs in (
        (LAYER, (wide,)),
        (f"{LAYER}.attention", (wide,)),
        (f"{LAYER}.attention.self", (wide,)),
        (f"{LAYER}.attention.output", (wide, wide)),
        (f"{LAYER}.intermediate", (wide,)),
        (f"{LAYER}.output", (torch.randn(3, 7, 40), wide)),
        (f"{LAYER}.output.LayerNorm", (wide,)),
        (f"{LAYER}.output.dense", (torch.randn(2, 3, 7, 40),)),
        ("encoder", (given,)),
        ("pooler", (wide,)),
    ):
        expected = theirs.get_submodule(path)(*inputs)
        found = ours.get_submodule(path)(*inputs)
        assert isinstance(found, tuple) == isinstance(expected, tuple), path
        same_tensor(first(found), first(expected))


def first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def same_tensor(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_dropouts_can_be_found() -> None:
    for family in ("bert", "camembert", "rembert", "align", *ELSEWHERE):
        theirs, ours = pair(family)
        names = [
            {name for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
            for model in (theirs, ours)
        ]
        assert names[0] == names[1]


def test_dropouts_in_an_eval_model_drop() -> None:
    """Monte Carlo dropout: several answers of one model, spread as transformers' are."""
    theirs, ours = pair("bert", "ForSequenceClassification")
    spread = []
    for model in (theirs, ours):
        with torch.no_grad():
            before = model(IDS, attention_mask=MASK).logits
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.train()
            answers = torch.stack([model(IDS, attention_mask=MASK).logits for _ in range(100)])
            spread.append(answers.std(0).mean())
            model.eval()
            assert torch.equal(model(IDS, attention_mask=MASK).logits, before)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            torch.testing.assert_close(model(IDS, attention_mask=MASK).logits, before)
    assert 0.8 < spread[1] / spread[0] < 1.25


def test_one_layer_in_training() -> None:
    _, ours = pair("bert")
    with torch.no_grad():
        before = outputs(ours)[0]
        ours.encoder.layer[2].train()
        states = [ours(IDS, output_hidden_states=True).hidden_states for _ in range(2)]
        assert torch.allclose(states[0][2], states[1][2])
        assert not torch.allclose(states[0][3], states[1][3])
        ours.eval()
        assert torch.equal(outputs(ours)[0], before)


@pytest.mark.parametrize("family", ["bert", "camembert"])
def test_hidden_states_and_attentions_of_what_is_called(family: str) -> None:
    theirs, ours = pair(family)
    for model in (theirs, ours):
        model.encoder.layer[1].register_forward_hook(doubled)
    given = {"output_hidden_states": True, "output_attentions": True}
    expected, found = (model(IDS, attention_mask=MASK, **given) for model in (theirs, ours))
    for one, other in zip(expected.hidden_states, found.hidden_states, strict=True):
        same_tensor(other[MASK.bool()], one[MASK.bool()])
    for one, other in zip(expected.attentions, found.attentions, strict=True):
        same_tensor(other[0], one[0])


def test_a_decoder_with_a_called_layer_generates_the_same() -> None:
    theirs, ours = pair("bert", "LMHeadModel", is_decoder=True)
    for model in (theirs, ours):
        model.bert.encoder.layer[1].register_forward_hook(doubled)
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = IDS[:1, :4]
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **given)
    assert torch.equal(ours.generate(prompt, **given), expected)


@pytest.mark.parametrize("family", ["bert", "camembert", "rembert"])
def test_an_encoder_takes_a_prefix(family: str) -> None:
    theirs, ours = pair(family)
    torch.manual_seed(2)
    prefix = [(torch.randn(3, 2, 4, 12), torch.randn(3, 2, 4, 12)) for _ in range(3)]
    wide = torch.cat([torch.ones(3, 4, dtype=torch.long), MASK], dim=1)
    for mask in (None, wide):
        cache = transformers.DynamicCache()
        for layer, (keys, values) in enumerate(prefix):
            cache.update(keys.clone(), values.clone(), layer)
        with torch.no_grad():
            expected = theirs(IDS, attention_mask=mask, past_key_values=cache)
            found = ours(IDS, attention_mask=mask, past_key_values=prefix)
        kept = torch.ones_like(MASK).bool() if mask is None else MASK.bool()
        same_tensor(found.last_hidden_state[kept], expected.last_hidden_state[kept])
        assert found.past_key_values is None


@pytest.mark.parametrize(
    "why", ["called as a module", "called for its product", "head_mask", "output_attentions"]
)
def test_strict_refuses_what_leaves_the_kernels(why: str) -> None:
    _, ours = pair("bert")
    ours.set_backend("cpu", strict=True)
    given: dict[str, Any] = {}
    with torch.no_grad():
        ours(IDS)
        if why == "called as a module":
            ours.encoder.layer[0].register_forward_hook(doubled)
        elif why == "called for its product":
            ours.encoder.layer[0].output.dense = nn.Linear(40, 24)
        else:
            given = {why: torch.ones(2) if why == "head_mask" else True}
        with pytest.raises(Unavailable, match=why):
            ours(IDS, **given)


def test_batch_invariance_is_said_of_the_pass() -> None:
    _, ours = pair("bert")
    assert "batch invariant   yes" in fastbert.explain(ours)
    ours.encoder.layer[0].output.dense = nn.Linear(40, 24)
    told = fastbert.explain(ours)
    assert "batch invariant   no" in told and "encoder.layer.0.output.dense is a Linear" in told
    config = fastbert.BertConfig(**SIZES, position_embedding_type="relative_key_query")
    assert "batch invariant   no" in fastbert.explain(fastbert.BertModel(config))


def test_a_part_that_cannot_get_what_was_given_says_so() -> None:
    _, ours = pair("bert", "LMHeadModel", is_decoder=True)
    ours.bert.encoder.layer[1] = nn.Linear(24, 24)
    with pytest.raises(ValueError, match="past_key_values was given, but the Linear"):
        ours(IDS, use_cache=True)
    assert ours(IDS, use_cache=False).logits.shape == (3, 7, 60)
