"""A model in eval mode, called without no_grad: kernels forward, the reference's gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastbert
from fastbert.kernels import native
from fastbert.runtime.plan import use_backend

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 40}


def bert() -> Any:
    return fastbert.BertModel(fastbert.BertConfig(**SIZES))


def camembert() -> Any:
    return fastbert.CamembertModel(fastbert.CamembertConfig(**SIZES), add_pooling_layer=False)


def rembert() -> Any:
    return fastbert.RemBertModel(fastbert.RemBertConfig(**SIZES, input_embedding_size=16))


def flaubert() -> Any:
    sizes: dict[str, Any] = {"n_words": 60, "emb_dim": 24, "n_layers": 2, "n_heads": 2}
    return fastbert.FlaubertModel(fastbert.FlaubertConfig(**sizes, pre_norm=True))


FAMILIES = {"bert": bert, "camembert": camembert, "rembert": rembert, "flaubert": flaubert}


def made(build: Callable[[], Any] = bert) -> Any:
    torch.manual_seed(0)
    return build().eval()


def batch() -> dict[str, Tensor]:
    mask = (torch.arange(7) < torch.tensor([[7], [1], [4]])).long()
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(5, 60, (3, 7), generator=generator), "attention_mask": mask}


def objective(out: Any) -> Tensor:
    """Linear, so that its own gradient does not depend on who computed `out`."""
    total = torch.zeros(())
    for index, value in enumerate(out.to_tuple()):
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(index))
        total = total + (value * weights).sum()
    return total


def gradients(model: Any, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    objective(model(**inputs)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def on_kernels(out: Any) -> bool:
    return "_Recomputed" in type(out[0].grad_fn).__name__


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_reference(family: str) -> None:
    model = made(FAMILIES[family])
    inputs = batch()
    out = model(**inputs)
    assert on_kernels(out)
    with torch.no_grad():
        plain = model(**inputs)
    assert plain[0].grad_fn is None
    assert torch.equal(plain[0], out[0])
    ours = gradients(model, **inputs)
    with use_backend("reference"):
        assert not on_kernels(model(**inputs))
        theirs = gradients(model, **inputs)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "trained",
    ["pooler", "encoder.layer.1.output", "encoder.layer.0.attention.self.key", "embeddings"],
)
def test_parts_that_are_frozen_have_no_gradient(trained: str) -> None:
    model = made().requires_grad_(False)
    model.get_submodule(trained).requires_grad_(True)
    assert on_kernels(model(**batch()))
    ours = gradients(model, **batch())
    with use_backend("reference"):
        theirs = gradients(model, **batch())
    assert ours.keys() == theirs.keys() and ours
    assert all(name.startswith(trained) for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=2e-6, msg=name)


def test_gradients_of_embeddings_given() -> None:
    model = made()
    found = []
    for backend in ("auto", "reference"):
        source = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(3))
        source.requires_grad_()
        with use_backend(backend):
            out = model(inputs_embeds=source * 2.0, attention_mask=batch()["attention_mask"])
            assert on_kernels(out) == (backend == "auto")
            objective(out).backward()
        found.append(source.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-6)


def test_a_head_trains_on_it() -> None:
    torch.manual_seed(0)
    model = fastbert.BertForSequenceClassification(fastbert.BertConfig(**SIZES)).eval()
    labels = torch.tensor([0, 1, 1])

    def run() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch(), labels=labels).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    ours = run()
    with use_backend("reference"):
        theirs = run()
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_backward_twice_and_gradients_of_gradients() -> None:
    model = made()
    value = objective(model(**batch()))
    weight = model.encoder.layer[0].output.dense.weight
    once = torch.autograd.grad(value, weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, weight, retain_graph=True)[0], once)
    second = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            value = objective(model(**batch()))
            first = torch.autograd.grad(value, weight, create_graph=True)[0]
            second.append(torch.autograd.grad(first.square().sum(), weight)[0])
    torch.testing.assert_close(second[0], second[1], rtol=1e-4, atol=1e-5)
    assert second[0].abs().max() > 0


def test_changes_between_forward_and_backward_are_errors() -> None:
    model = made()
    value = objective(model(**batch()))
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    model = made()
    model.embeddings.position_embeddings.weight.requires_grad_(False)
    value = objective(model(**batch()))
    model.embeddings.position_embeddings.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    model = made()
    value = objective(model(**batch()))
    model.encoder.layer[1].output.dense.bias = torch.nn.Parameter(torch.zeros(24))
    with pytest.raises(RuntimeError, match="replaced between its forward and its backward"):
        value.backward()


def test_a_training_loop_in_eval_mode_packs_its_weights_once() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    runs = []
    for _ in range(3):
        out = model(**batch())
        runs.append(on_kernels(out))
        with use_backend("reference"):
            expected = model(**batch())
        torch.testing.assert_close(out[0], expected[0], rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        objective(out).backward()
        optimizer.step()
    assert runs == [True, False, False]
    with torch.no_grad():
        model(**batch())
    assert on_kernels(model(**batch()))


def test_training_mode_and_special_passes_stay_on_the_reference() -> None:
    model = made()
    assert not on_kernels(model(**batch(), output_hidden_states=True))
    assert not on_kernels(model.train()(**batch()))
    assert not on_kernels(model.eval()(**batch(), head_mask=torch.ones(2)))
    assert model.requires_grad_(False)(**batch())[0].grad_fn is None


@pytest.mark.parametrize("late", [False, True])
def test_hooks_on_embeddings_given_run_once(late: bool) -> None:
    """The graph that the embeddings came from is the caller's, and gone through once."""
    found = []
    for backend in ("reference", "auto"):
        model = made()
        model.set_backend(backend)
        ids, seen = batch()["input_ids"], []

        def halved(gradient: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(1)
            return 0.5 * gradient

        for _ in range(2):
            model.zero_grad()
            embeds = model.get_input_embeddings()(ids)
            embeds.retain_grad()
            if not late:
                embeds.register_hook(halved)
            out = model(inputs_embeds=embeds)
            if late:
                embeds.register_hook(halved)
            objective(out).backward()
        assert seen == [1, 1]
        found.append([embeds.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_of_embeddings_given() -> None:
    found = []
    for backend in ("reference", "auto"):
        model = made()
        model.set_backend(backend)
        words = model.get_input_embeddings()
        embeds = words(batch()["input_ids"])
        total = objective(model(inputs_embeds=embeds))
        (first,) = torch.autograd.grad(total, embeds, create_graph=True)
        first.square().sum().backward()
        found.append([first.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


def test_hooks_on_weights_run_once() -> None:
    found = []
    for backend in ("reference", "auto"):
        model = made()
        model.set_backend(backend)
        for weight in model.parameters():
            weight.register_hook(lambda gradient: 0.5 * gradient)
        objective(model(**batch())).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    out = made_and_packed()
    out[0].embeddings.word_embeddings.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(RuntimeError, match="register it before the forward pass"):
        out[1].backward()


def made_and_packed() -> tuple[Any, Tensor]:
    """A model, and the result of a pass that waits for its backward pass."""
    model = made()
    return model, objective(model(**batch()))


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "token_type_ids"])
def test_indices_that_change_before_the_backward_pass_are_errors(name: str) -> None:
    model, given = made(), {**batch()}
    shape = given["input_ids"].shape
    given |= {
        "position_ids": torch.arange(7).repeat(3, 1),
        "token_type_ids": torch.zeros(shape).long(),
    }
    total = objective(model(**given))
    given[name].fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
