"""Every class and every argument against transformers, from the same weights."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import oracle
import pytest
import torch
import transformers
from torch import Tensor

import fastbert
from fastbert.kernels import native
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import Options


def ask(model: Any, case: dict[str, Any]) -> Any:
    """The output for a case whose tensors the model must leave as they are."""
    before = {k: v.clone() for k, v in case.items() if isinstance(v, Tensor)}
    output = model(**case)
    for name, value in before.items():
        assert torch.equal(case[name], value), f"{name} was modified in place"
    return output


def grid_mask(case: dict[str, Any]) -> Tensor:
    mask = case.get("attention_mask")
    if mask is None and "lengths" in case:
        return torch.arange(oracle.LENGTH) < case["lengths"][:, None]
    if mask is None and oracle.FLAUBERT_PAD in case.get("input_ids", ()):
        return case["input_ids"] != oracle.FLAUBERT_PAD
    source = case.get("input_ids", case.get("inputs_embeds"))
    if mask is None or mask.dim() == 4:
        return torch.ones(source.shape[:3] if source.dim() == 3 and mask is None else (1,))
    return mask


def theirs_of(model: Any, case: dict[str, Any]) -> Any:
    """transformers moves labels of two dimensions in place; give it copies."""
    return model(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in case.items()})


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_float64(name: str) -> None:
    theirs, ours = oracle.shared_pair(name)
    for label, case in oracle.inputs_of(name).items():
        with torch.no_grad():
            expected, got = theirs_of(theirs, case), ask(ours, case)
        oracle.compared(expected, got, grid_mask(case), oracle.tolerance(name), f"{name} {label}")


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_float32_on_the_cpu_kernels(name: str) -> None:
    reason = native.reason()
    if reason is not None:
        pytest.fail(reason)
    theirs, ours = oracle.shared_pair(name)
    kernels = copy.deepcopy(ours).float()
    kernels.set_backend("cpu")
    with torch.no_grad():
        assert kernels.plan().choice("linear").backend == "cpu"
        for label, case in oracle.inputs_of(name).items():
            single = {
                k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in case.items()
            }
            got = ask(kernels, single)
            where = f"{name} {label}"
            oracle.compared(theirs_of(theirs, case), got, grid_mask(case), 2e-5, where)


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_gradients_of_every_parameter(name: str) -> None:
    theirs, ours = oracle.pair(name)
    cases = oracle.inputs_of(name)
    case = cases.get("labels", cases["mask"])
    for model, run in ((theirs, theirs_of), (ours, ask)):
        output = run(model, case)
        loss = output.get("loss")
        if loss is None:
            mask = grid_mask(case)[..., None]
            loss = (output["last_hidden_state"].square() * mask).sum()
            if output.get("pooler_output") is not None:
                loss = loss + output["pooler_output"].sum()
        loss.backward()
    expected = dict(theirs.named_parameters(remove_duplicate=False))
    for key, parameter in ours.named_parameters():
        gradient = expected[key].grad
        if gradient is None:
            none = parameter.grad is None or not parameter.grad.any()
            assert none, f"{name}: {key} has a gradient"
            continue
        assert parameter.grad is not None, f"{name}: {key} has no gradient"
        error = float((gradient - parameter.grad).abs().max())
        scale = max(float(gradient.abs().max()), 1.0)
        bound = 1e-6 if oracle.is_causal(name) else 10 * oracle.tolerance(name)
        assert error <= bound * scale, f"{name}: {key} is off by {error:.2e} of {scale:.2e}"


def test_no_class_is_left_out() -> None:
    public = {
        name
        for name in fastbert.__all__
        # Decoders, and what sees images, have tests of their own.
        if not name.startswith(("Auto", "Apertus"))
        and name not in ("AlignModel", "AlignVisionModel")
        and not name.endswith("PreTrainedModel")  # bases
        and isinstance(getattr(fastbert, name), type)
        and issubclass(getattr(fastbert, name), PreTrainedModel)
    }
    assert public == set(oracle.CLASSES)


def arguments_of(kind: Any) -> set[str]:
    """The arguments of a class's forward, those of its open keywords included."""
    parameters = inspect.signature(kind.forward).parameters
    names = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    if len(names) < len(parameters):
        names |= set(Options.__annotations__)
    return names - {"self"}


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_no_argument_is_left_out(name: str) -> None:
    used = {key for case in oracle.inputs_of(name).values() for key in case}
    used |= {argument for argument, names in oracle.ELSEWHERE.items() if name in names}
    left = arguments_of(getattr(fastbert, name)) - used
    if name == "FlaubertForMultipleChoice":
        left -= {"lengths"}  # warned about and not used, as in transformers
    assert not left, f"{name} takes {sorted(left)}, which no case compares"


def test_a_new_argument_would_be_missed() -> None:
    """The guard bites: on an argument of a forward, and on one of the common keywords."""

    class More(fastbert.BertForMaskedLM):
        def forward(self, input_ids: Any, surprise: Any = None, **options: Any) -> Any:  # type: ignore
            return None

    assert "surprise" in arguments_of(More)
    assert {"head_mask", "return_dict"} <= arguments_of(More)
    known = {key for case in oracle.inputs_of("BertForMaskedLM").values() for key in case}
    assert "surprise" not in known | set(oracle.ELSEWHERE)


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_every_class_hands_on_the_common_keywords(name: str) -> None:
    """head_mask is compared with transformers 4 on the encoders (test_model_golden.py); every class
    must reach its encoder with it."""
    _, ours = oracle.shared_pair(name)
    case = oracle.inputs_of(name)["mask"]
    mask = torch.ones(oracle.LAYERS, oracle.HEADS)
    with torch.no_grad():
        plain = ours(**case, return_dict=False)[0]
        whole = ours(**case, return_dict=False, head_mask=mask, cache_position=torch.arange(7))[0]
        assert torch.allclose(plain, whole, rtol=0, atol=1e-12)
        mask[0, 1] = 0
        assert not torch.allclose(plain, ours(**case, return_dict=False, head_mask=mask)[0])


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_flaubert_variants(pre_norm: bool, causal: bool, gelu: bool) -> None:
    """pre_norm is what transformers 5 cannot run without the patch in oracle.py."""
    settings = {"pre_norm": pre_norm, "causal": causal, "gelu_activation": gelu, "n_langs": 3}
    theirs, ours = oracle.pair("FlaubertModel", **settings)
    cases = oracle.inputs_of("FlaubertModel")
    cases["languages"]["langs"] = oracle.random_labels(3, (oracle.BATCH, oracle.LENGTH))
    for label, case in cases.items():
        if pre_norm:
            case.pop("output_attentions", None)
        with torch.no_grad():
            expected, got = theirs_of(theirs, case), ours(**case)
        oracle.compared(expected, got, grid_mask(case), 2e-6, label)


@pytest.mark.parametrize("kind", ["first", "last", "mean", "cls_index"])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_flaubert_summaries(kind: str, activation: str | None) -> None:
    settings = {"summary_type": kind, "summary_activation": activation}
    theirs, ours = oracle.pair("FlaubertForSequenceClassification", **settings)
    case = {"input_ids": oracle.random_ids(), "attention_mask": oracle.padded_mask()}
    with torch.no_grad():
        oracle.close(theirs(**case).logits, ours(**case).logits, torch.ones(1), 2e-6, kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_distances_of_mpnet(dtype: torch.dtype) -> None:
    """Far ones share buckets; padding and holes move no column; neighbours change no bits."""
    theirs, ours = oracle.pair("MPNetModel", max_position_embeddings=310)
    ids = torch.randint(4, oracle.VOCABULARY, (4, 300), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 40:], mask[2, :200], mask[3, 20:150] = 0, 0, 0
    if dtype is not torch.float64:
        ours = ours.to(dtype)
        ours.set_backend("cpu", strict=True)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).last_hidden_state
        found = ours(ids, attention_mask=mask).last_hidden_state
        bound = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.1}[dtype]
        oracle.close(expected, found.double(), mask, bound, str(dtype))
        for row in range(4 if dtype is not torch.float64 else 0):
            alone = ours(ids[row : row + 1], attention_mask=mask[row : row + 1])
            assert torch.equal(alone.last_hidden_state[0], found[row])
        moved = theirs.encoder.relative_attention_bias.weight
        theirs.encoder.relative_attention_bias.weight = torch.nn.Parameter(moved.flip(0))
        off = theirs(ids, attention_mask=mask).last_hidden_state - found.double()
        assert float((off * mask[..., None]).abs().max()) > 10 * bound
    assert "op by op" not in fastbert.explain(ours)
    with pytest.raises(NotImplementedError, match="Use head_mask"):
        ours.prune_heads({0: [1]})
    with pytest.raises(ValueError, match="sorts distances into 32 buckets"):
        fastbert.MPNetModel(fastbert.MPNetConfig(relative_attention_num_buckets=8))


def test_positions_of_distilbert() -> None:
    sizes = {**oracle.FAMILIES["DistilBert"], "sinusoidal_pos_embds": True}
    theirs = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))
    ours = fastbert.DistilBertForMaskedLM(fastbert.DistilBertConfig(**sizes))
    table = theirs.embeddings.position_embeddings.weight
    assert torch.equal(ours.get_position_embeddings().weight, table)
    ours.resize_position_embeddings(40)
    assert torch.equal(ours.get_position_embeddings().weight[:24], table)
    ids = torch.randint(4, oracle.VOCABULARY, (1, 40))
    assert ours(ids).logits.shape[1] == ours.config.max_position_embeddings == 40
    ours.resize_position_embeddings(8)
    assert torch.equal(ours.get_position_embeddings().weight, table[:8])
    with pytest.raises(ValueError, match="has positions for 8"):
        ours(ids)
    with pytest.raises(ValueError, match="num_labels must be 2"):
        fastbert.DistilBertForQuestionAnswering(fastbert.DistilBertConfig(**sizes, num_labels=3))


@pytest.mark.parametrize("name", ["DistilBertModel", "MPNetForTokenClassification"])
def test_token_types_of_families_without(name: str) -> None:
    """transformers 5 takes what BERT's tokenizer returns, and reads none of it."""
    theirs, ours = oracle.shared_pair(name)
    case = {"input_ids": oracle.random_ids(), "token_type_ids": oracle.random_ids() % 2}
    with torch.no_grad():
        oracle.close(theirs(**case)[0], ours(**case)[0], torch.ones(1), 1e-9, name)


@pytest.mark.parametrize("kind", ["first", "last", "mean", "cls_index"])
@pytest.mark.parametrize("activation", ["", "gelu"])
def test_summaries_of_electra(kind: str, activation: str) -> None:
    """Padding takes part in all but the first, as in transformers."""
    settings = {"summary_type": kind, "summary_activation": activation}
    theirs, ours = oracle.pair("ElectraForMultipleChoice", **settings)
    case = oracle.inputs_of("ElectraForMultipleChoice")["mask"]
    with torch.no_grad():
        oracle.close(theirs(**case).logits, ours(**case).logits, torch.ones(1), 1e-9, kind)
        for model in (theirs, ours):
            model.sequence_summary.activation.register_forward_hook(lambda _m, _i, out: out.tanh())
        oracle.close(theirs(**case).logits, ours(**case).logits, torch.ones(1), 1e-9, kind)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, 1.0, -1.0, 2.0], dtype=torch.float64)),
        ({"num_labels": 3, "problem_type": "regression"}, torch.ones(4, 3, dtype=torch.float64)),
        ({"num_labels": 3}, torch.tensor([[1.0, 0, 1]] * 4, dtype=torch.float64)),
        ({"num_labels": 3}, torch.tensor([0, 1, 2, 1])),
    ],
)
@pytest.mark.parametrize("family", oracle.TEXT_FAMILIES)
def test_problem_types(family: str, settings: dict[str, Any], labels: Tensor) -> None:
    name = f"{family}ForSequenceClassification"
    theirs, ours = oracle.pair(name, **settings)
    ids = oracle.random_ids()
    with torch.no_grad():
        expected, got = theirs(ids, labels=labels), ours(ids, labels=labels)
    oracle.compared(expected, got, torch.ones(1), oracle.tolerance(name), name)
    assert ours.config.problem_type == theirs.config.problem_type


@pytest.mark.parametrize(
    "name", ["BertModel", "FlaubertModel", "RemBertModel", "DistilBertModel", "MPNetModel"]
)
def test_feed_forward_in_chunks(name: str) -> None:
    theirs, ours = oracle.pair(name)
    ours.config.chunk_size_feed_forward = 7
    case = {"input_ids": oracle.random_ids(), "attention_mask": oracle.padded_mask()}
    with torch.no_grad():
        got = ours(**case)
        oracle.compared(theirs(**case), got, case["attention_mask"], oracle.tolerance(name), name)
    ours.config.chunk_size_feed_forward = 3
    with pytest.raises(ValueError, match="multiple of chunk_size_feed_forward"):
        ours(**case)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu", "tanh"])
def test_other_activations(activation: str) -> None:
    theirs, ours = oracle.pair("BertForMaskedLM", hidden_act=activation)
    ids = oracle.random_ids()
    with torch.no_grad():
        oracle.close(theirs(ids).logits, ours(ids).logits, torch.ones(1), 1e-9, activation)
