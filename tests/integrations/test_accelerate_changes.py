"""An accelerated model follows what is done to it: every change that people make to a live model.

The kernels read the model's own parameters. So whatever changes them, replaces them, or puts
something else in a module's place must show in the next pass as it does in the model itself, of
which a copy that was never accelerated goes through the same.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerating import IDS, MASK, asked, pair, plain, reasons, same, served, shells
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

import fastbert
from fastbert.engine.encoder_cache import StaleModel
from fastbert.integrations.serving import server_of
from fastbert.integrations.shell import Outgrown, Shell

HEAD = "BertForSequenceClassification"


def train_step(model: Any, fused: bool = False) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    options: dict[str, Any] = {"lr": 0.01, "fused": fused}
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-2, **options)
    out = model(input_ids=IDS, attention_mask=MASK)
    out[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def replaced(model: Any) -> None:
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight = nn.Parameter(dense.weight.detach() * 1.5)


def loaded(assign: bool) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        state = {key: value * 0.9 for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return change


def other_linear(model: Any) -> None:
    dense = model.bert.encoder.layer[1].intermediate.dense
    new = nn.Linear(dense.in_features, dense.out_features)
    with torch.no_grad():
        new.weight.copy_(dense.weight.flip(0))
        new.bias.copy_(dense.bias)
    model.bert.encoder.layer[1].intermediate.dense = new


def own_norm(model: Any) -> None:
    class Scaled(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    norm = model.bert.encoder.layer[0].output.LayerNorm
    new = Scaled(norm.normalized_shape, eps=norm.eps)
    new.load_state_dict(norm.state_dict())
    model.bert.encoder.layer[0].output.LayerNorm = new


def resized(model: Any) -> None:
    torch.manual_seed(0)
    model.resize_token_embeddings(80, mean_resizing=False)


def own_layer(model: Any) -> None:
    class Passing(nn.Module):
        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return hidden_states * 0.5

    model.bert.encoder.layer[1] = Passing()


def fewer_layers(model: Any) -> None:
    model.bert.encoder.layer = model.bert.encoder.layer[:1]


def fewer_by_config(model: Any) -> None:
    fewer_layers(model)
    model.config.num_hidden_layers = 1


def other_activation(model: Any) -> None:
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()


def epsilon(model: Any) -> None:
    model.bert.embeddings.LayerNorm.eps = 0.5


def own_forward(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: original(*args, **kwargs) * 0.5


def layer_hook(model: Any) -> None:
    model.bert.encoder.layer[0].register_forward_hook(lambda _, __, out: out * 0.5)


def projection_hook(model: Any) -> None:
    dense = model.bert.encoder.layer[0].attention.self.query
    dense.register_forward_hook(lambda _, __, out: out * 0.5)


def norm_hook(model: Any) -> None:
    norm = model.bert.encoder.layer[1].output.LayerNorm
    norm.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))


def table_hook(model: Any) -> None:
    def scaled(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        assert out.dim() == 3  # NEFTune divides by its length and width
        return out * out.shape[1]

    model.bert.embeddings.word_embeddings.register_forward_hook(scaled)


def weight_norm(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)


def spoiled_dropout(model: Any) -> None:
    model.bert.encoder.layer[0].output.dropout = nn.Identity()


def attention_of_ones_own(model: Any) -> None:
    def uniform(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> Any:
        out = v.mean(dim=2, keepdim=True).expand_as(v)
        return out.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("uniform", uniform)
    model.set_attn_implementation("uniform")


def half_trained(model: Any) -> None:
    # In training mode the one dropout drops nothing, so that the answer stays the same.
    model.bert.encoder.layer[0].output.dropout.p = 0.0
    model.bert.encoder.layer[0].train()
    for module in model.bert.encoder.layer[0].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


# What keeps running on kernels, and what goes to the original forward.
ON_KERNELS: dict[str, Callable[[Any], None]] = {
    "a training step": train_step,
    "a fused step": lambda model: train_step(model, fused=True),
    "a replaced parameter": replaced,
    "data": lambda m: m.bert.encoder.layer[0].output.dense.weight.__setattr__(
        "data", m.bert.encoder.layer[0].output.dense.weight * 1.3
    ),
    "load_state_dict": loaded(False),
    "load_state_dict(assign=True)": loaded(True),
    "another linear layer": other_linear,
    "a norm of one's own": own_norm,
    "a resized vocabulary": resized,
    "fewer layers, as configured": fewer_by_config,
    "a hook on a projection": projection_hook,
    "a hook on a norm": norm_hook,
    "a hook on the words": table_hook,
    "weight norm": weight_norm,
    "no dropout": spoiled_dropout,
    "half in training mode": half_trained,
    "frozen": lambda model: model.requires_grad_(False),
    "from double back": lambda model: model.double().float(),
}
ELSEWHERE: dict[str, Callable[[Any], None]] = {
    "a layer of one's own": own_layer,
    "fewer layers": fewer_layers,
    "another activation": other_activation,
    "another epsilon": epsilon,
    "a forward of one's own": own_forward,
    "a hook on a layer": layer_hook,
    "an attention of one's own": attention_of_ones_own,
    "a causal mask": lambda model: setattr(model.config, "is_decoder", True),
}


@pytest.mark.parametrize("change", ON_KERNELS)
@pytest.mark.parametrize("first", [False, True])
def test_a_change_is_followed(change: str, first: bool) -> None:
    """Before the first pass and after it."""
    theirs, ours = pair(HEAD)
    if not first:
        served(ours)
    torch.manual_seed(3)
    ON_KERNELS[change](theirs)
    torch.manual_seed(3)
    ON_KERNELS[change](ours)
    for _ in range(2):
        same(asked(theirs), served(ours), 1e-4 if "step" in change else 2e-5)


@pytest.mark.parametrize("change", ON_KERNELS)
def test_a_change_before_is_taken_over(change: str) -> None:
    theirs = plain(HEAD)
    ON_KERNELS[change](theirs)
    ours = plain(HEAD)
    torch.manual_seed(0)
    ON_KERNELS[change](ours)
    ours.load_state_dict(theirs.state_dict())
    fastbert.accelerate(ours)
    same(asked(theirs), served(ours))


@pytest.mark.parametrize("change", ELSEWHERE)
def test_what_kernels_cannot_know_goes_to_the_original(change: str) -> None:
    theirs, ours = pair(HEAD)
    served(ours)
    before = {name: vars(module).copy() for name, module in theirs.named_modules()}
    ELSEWHERE[change](theirs)
    ELSEWHERE[change](ours)
    with pytest.warns(UserWarning, match="goes to transformers' own forward") as said:
        same(asked(theirs), asked(ours), 0.0)
        same(asked(theirs), asked(ours), 0.0)
    assert len([one for one in said if "own forward" in str(one.message)]) == 1
    (reason,) = reasons(ours)
    assert reason in fastbert.explain(ours) and "2 passes" in fastbert.explain(ours)
    assert before.keys() >= {"bert"}
    strict = fastbert.accelerate(ours, strict=False)
    assert strict is ours


def test_hooks_that_go_are_gone() -> None:
    theirs, ours = pair(HEAD)
    seen: list[int] = []
    hook = ours.bert.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match=r"encoder\.layer\.0 has hooks"):
        same(asked(theirs), asked(ours))
    hook.remove()
    same(asked(theirs), served(ours))
    assert seen == [1]


# Padded on the right, so that a head that reads the first token could do without the padding.
RIGHT = MASK.sort(dim=1, descending=True).values


def test_hooks_on_the_encoder_itself_see_all_rows() -> None:
    theirs, ours = pair(HEAD)
    seen: dict[int, Any] = {}
    for model in (theirs, ours):
        model.bert.register_forward_hook(lambda module, _, out: seen.update({id(module): out}))
    same(asked(theirs, attention_mask=RIGHT), served(ours, attention_mask=RIGHT))
    same(seen[id(theirs.bert)], seen[id(ours.bert)])


def test_the_encoder_of_a_head_shows_all_rows_to_others() -> None:
    theirs, ours = pair(HEAD)
    for options in ({}, {"output_hidden_states": True}):
        given = {"attention_mask": RIGHT, **options}
        same(asked(theirs.bert, **given), served(ours.bert, **given))
        same(asked(theirs, **given), served(ours, **given))


def test_strict_says_what_is_not_served() -> None:
    ours = fastbert.accelerate(plain(HEAD), strict=True)
    served(ours)
    layer_hook(ours)
    with pytest.raises(fastbert.errors.Unavailable, match=r"encoder\.layer\.0 has hooks"):
        asked(ours)
    with pytest.raises(fastbert.errors.Unavailable, match="holds other modules"):
        model = plain(HEAD)
        fewer_layers(model)
        fastbert.accelerate(model, strict=True)
    assert server_of(model.bert) is None


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    settings = {"target_modules": ["query", "value", "dense"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**{**settings, **options}))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_comes_later(dora: bool) -> None:
    theirs, ours = pair(HEAD)
    served(ours)
    theirs, ours = (adapted(model, use_dora=dora, exclude_modules=["classifier"]).eval()
                    for model in (theirs, ours))  # fmt: skip
    same(asked(theirs), served(ours))
    for step in ("merge_adapter", "unmerge_adapter", "disable_adapter_layers",
                 "enable_adapter_layers"):  # fmt: skip
        for model in (theirs, ours):
            getattr(model if "merge" in step else model.base_model, step)()
        same(asked(theirs), served(ours))
    theirs, ours = (model.merge_and_unload() for model in (theirs, ours))
    same(asked(theirs), served(ours))
    for _ in range(2):
        same(asked(theirs), served(ours))


def test_an_adapter_trains() -> None:
    theirs, ours = (adapted(model) for model in pair(HEAD))
    for model in (theirs, ours):
        train_step(model)
    same(asked(theirs), served(ours), 1e-4)
    same(theirs.state_dict(), ours.state_dict(), 1e-4)


def test_accelerating_an_adapted_model() -> None:
    theirs = adapted(plain(HEAD)).eval()
    ours = fastbert.accelerate(copy.deepcopy(theirs))
    same(asked(theirs), served(ours))
    unloaded = ours.unload()
    same(asked(theirs.unload()), served(unloaded))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: _saved(model),
}


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_accelerated_and_their_own(how: str) -> None:
    theirs, ours = pair(HEAD)
    served(ours)
    copied = COPIES[how](ours)
    same(asked(theirs), served(copied))
    replaced(copied)
    assert not torch.equal(asked(copied).logits, asked(ours).logits)
    same(asked(theirs), served(ours))
    replaced(theirs)
    same(asked(theirs), served(copied))


def test_what_is_saved_is_transformers_own(tmp_path: Path) -> None:
    theirs, ours = pair(HEAD)
    served(ours)
    train_step(ours)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {path.name for path in (tmp_path / "theirs").iterdir()}
    configs = [(tmp_path / who / "config.json").read_text() for who in ("ours", "theirs")]
    assert configs[0] == configs[1]
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    same(asked(again.eval()), served(ours))
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_weights_are_shared_and_restored() -> None:
    model = plain(HEAD)
    kind, parameters = type(model.bert), list(model.parameters())
    before = dict(vars(model.bert))
    assert fastbert.accelerate(model) is model
    assert isinstance(model.bert, kind) and type(model.bert).__name__ == kind.__name__
    found = served(model)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    (shell,) = shells(model)
    held = {id(parameter) for parameter in parameters}
    assert all(id(parameter) in held for parameter in shell.parameters())
    assert fastbert.restore(model) is model
    assert type(model.bert) is kind and vars(model.bert) == before
    assert vars(model.bert).keys() == before.keys()
    same(asked(model), found)
    assert fastbert.restore(model) is model


def test_twice_is_once() -> None:
    model = fastbert.accelerate(plain(HEAD))
    (shell,) = shells(model)
    server = server_of(model.bert)
    fastbert.accelerate(fastbert.accelerate(model))
    assert server_of(model.bert) is server and shells(model) == [shell]
    fastbert.accelerate(model, training="original")
    assert server_of(model.bert) is not server
    assert type(fastbert.restore(model).bert) is transformers.BertModel


def test_half_of_a_model() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = plain("BertModel"), plain("CamembertModel")

        def forward(self, **given: Any) -> Any:
            return self.one(**given).pooler_output + self.other(**given).pooler_output

    theirs = Both().eval()
    ours = copy.deepcopy(theirs)
    fastbert.accelerate(ours.one)
    assert server_of(ours.other) is None
    same(asked(theirs), asked(ours))
    fastbert.accelerate(ours)
    assert server_of(ours.other) is not None
    same(asked(theirs), served(ours))
    fastbert.restore(ours.other)
    same(asked(theirs), served(ours))


def test_training_left_to_the_original() -> None:
    theirs, ours = pair(HEAD, training="original")
    same(asked(theirs), served(ours))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (theirs, ours):
            train_step(model)
    same(list(theirs.parameters()), list(ours.parameters()), 0.0)
    same(asked(theirs), asked(ours))
    assert list(reasons(ours)) == ["training='original' leaves passes with gradients to it"]


def test_checkpointed_activations() -> None:
    theirs, ours = pair(HEAD)
    for model in (theirs, ours):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        train_step(model)
    same(asked(theirs), served(ours), 1e-4)
    assert shells(ours)[0].gradient_checkpointing
    for model in (theirs, ours):
        model.gradient_checkpointing_disable()
    same(asked(theirs), served(ours), 1e-4)
    assert not shells(ours)[0].gradient_checkpointing


def test_a_compiled_model_answers_the_same() -> None:
    theirs, ours = pair(HEAD)
    compiled = torch.compile(ours, backend="eager")
    same(asked(theirs), asked(compiled))
    replaced(theirs)
    replaced(ours)
    same(asked(theirs), asked(compiled))
    assert not reasons(ours)


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
def test_precisions_that_torch_mixes_go_to_the_original(table: str) -> None:
    original, model = pair(HEAD)
    served(model)
    for one in (original, model):
        getattr(one.bert.embeddings, table).bfloat16()
    same(asked(original), asked(model), 1e-2)
    assert any("torch.bfloat16" in reason for reason in reasons(model))


def test_gradients_of_each_sample() -> None:
    """A transform sees every operation of the original."""
    found = []
    for model in pair("BertModel"):
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights: Any, ids: torch.Tensor, model: Any = model) -> torch.Tensor:
            return torch.func.functional_call(model, weights, (ids[None],))[0].square().sum()

        found.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, IDS))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-3, atol=1e-3)


def test_a_class_that_another_library_made() -> None:
    """As fully_shard of torch makes one."""
    original, model = pair("BertModel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = type(model)
        model.__class__ = type("Sharded" + kind.__name__, (kind,), {})
        same(asked(original), asked(model))


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel"])
def test_layers_that_torch_quantised_see_all_rows(name: str) -> None:
    """They scale by the largest value of a batch, padding too."""
    original, model = pair(name)
    for one in (original, model):
        torch.ao.quantization.quantize_dynamic(one, {nn.Linear}, inplace=True)
    same(asked(original), asked(model), 1e-6)
    assert any("quantised by torch" in reason for reason in reasons(model))


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("error", [Outgrown, StaleModel])
@pytest.mark.filterwarnings("ignore:A pass of the accelerated")
def test_an_encoder_that_changes_during_every_attempt_answers_by_its_own_forward(
    error: type[Exception], quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another thread swaps layers or loads weights all the time."""
    theirs, ours = pair(HEAD, quantization=quantization)
    asked(ours)

    def changing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Shell, "follow" if error is Outgrown else "compute", changing)
    server = server_of(ours.bert)
    assert server is not None
    server.refresh()
    same(asked(theirs), asked(ours))
    assert any("another thread" in reason for reason in reasons(ours))
    monkeypatch.undo()
    same(asked(theirs), served(ours), 2e-5 if quantization is None else 0.2)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_raw_writes_are_followed_after_accelerating_again(quantization: str | None) -> None:
    """A live model of transformers has no refresh()."""
    theirs, ours = pair(HEAD, quantization=quantization)
    asked(ours)
    for model in (theirs, ours):
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight.data.neg_()
    assert fastbert.accelerate(ours, quantization=quantization) is ours
    same(asked(theirs), served(ours), 2e-5 if quantization is None else 0.2)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("part", ["embeddings.position_embeddings", "encoder.layer.0.output.dense"])
@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.filterwarnings("ignore:A pass of the accelerated")
def test_a_weight_that_is_computed_from_now_on_is_computed(
    pruned: bool, part: str, quantization: str | None
) -> None:
    """Pruning and parametrizations take the parameter away from a module that was read."""
    theirs, ours = pair(HEAD, quantization=quantization)
    asked(ours)
    for model in (theirs, ours):
        module = model.bert.get_submodule(part)
        torch.manual_seed(1)
        prune.l1_unstructured(module, "weight", 0.4) if pruned else spectral_norm(module)
    bound = 2e-5 if quantization is None else 0.2
    same(asked(theirs), asked(ours), bound)
    if pruned:
        for model in (theirs, ours):
            prune.remove(model.bert.get_submodule(part), "weight")
        same(asked(theirs), served(ours), bound)
