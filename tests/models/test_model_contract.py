"""What tools of transformers, accelerate and torch ask of a model class without calling forward.

The names and answers are those of transformers' own model tests. Not of our contract are those
that ask for its class of layers (GradientCheckpointingLayer; test_model_recomputing.py asks for
what it does), for a line of its own logger where shapes differ (a warning here), for an error
under a meta device (weights are loaded into memory) or for a model out of a file without any of
its weights (refused here), and those that hand a configuration of ours to its AutoModel. Of
Apertus, rope_type "dynamic" is refused, since its angles depend on the longest text of a batch.
Of its tests of generation, those fail that give what generate() refuses by name (inputs_embeds,
position_ids, logits_to_keep, assistants, caches of a fixed size).
ALIGN fails those that transformers' own ALIGN fails: its outputs hold no hidden states and no loss
where they look for them.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import accelerate
import oracle
import pytest
import torch
import transformers
from accelerate.utils import convert_to_fp32
from torch import Tensor

import fastbert
from fastbert.outputs import MaskedLMOutput, SequenceClassifierOutput

IDS = oracle.random_ids()


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_classes_answer_as_those_of_transformers(name: str) -> None:
    theirs, ours = oracle.shared_pair(name)
    assert type(ours).can_generate() == type(theirs).can_generate() == ours.can_generate()
    assert ours.get_memory_footprint() == sum(p.nbytes for p in ours.parameters())
    assert ours._keep_in_fp32_modules_strict == set()
    assert ours.main_input_name == theirs.main_input_name
    assert torch.equal(ours.dummy_inputs["input_ids"], theirs.dummy_inputs["input_ids"])
    assert not ours.is_activation_checkpointing
    assert getattr(ours, "num_labels", 2) == 2
    if ours.loss_type is not None and theirs.loss_type is not None:
        assert ours.loss_type == theirs.loss_type
    find = transformers.utils.generic.find_labels
    assert find(type(ours)) == find(type(theirs))
    assert set(ours.tied_weights()) == set(ours._keys_to_ignore_on_save or ())


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_parameters_come_in_the_order_of_transformers(name: str) -> None:
    """By which optimizers know them, and parameters_to_vector."""
    theirs, ours = oracle.shared_pair(name)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_checkpointing_of_an_old_configuration_is_obeyed() -> None:
    config = fastbert.BertConfig(**oracle.FAMILIES["Bert"], gradient_checkpointing=True)
    assert fastbert.BertForMaskedLM(config).is_activation_checkpointing
    with pytest.raises(ValueError, match="every_n_layers"):
        fastbert.BertModel(config).activation_checkpointing_enable(every_n_layers=0)
    with pytest.raises(ValueError, match="does not support"):
        oracle.shared_pair("FlaubertModel")[1].activation_checkpointing_enable()


def test_a_misspelt_attention_is_refused() -> None:
    model = oracle.pair("BertModel")[1]
    model.set_attn_implementation("eager")
    for wrong in ("foo", {"": "spda"}):
        with pytest.raises(ValueError, match="is not supported"):
            model.set_attn_implementation(wrong)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="is not supported"):
        fastbert.BertModel._from_config(model.config, attn_implementation="foo")


# Outputs


def test_outputs_are_made_again_from_their_items() -> None:
    """As accelerate (a mapping) and nn.DataParallel (pairs) make them."""
    whole = SequenceClassifierOutput(torch.ones(()), torch.ones(2, 3), (torch.zeros(1),))
    for items in (dict(whole), list(whole.items()), iter(whole.items()), whole):
        again = SequenceClassifierOutput(items)  # type: ignore[arg-type]
        assert again.to_tuple() == whole.to_tuple() and list(again) == list(whole)
    half: Any = convert_to_fp32(MaskedLMOutput(logits=torch.ones(2, dtype=torch.bfloat16)))
    assert half.logits.dtype is torch.float32 and half.loss is None
    assert SequenceClassifierOutput({}).to_tuple() == ()  # type: ignore[arg-type]
    for wrong in ({"scores": 1}, {1: 2}):
        with pytest.raises(TypeError, match="takes its fields"):
            SequenceClassifierOutput(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nothing else"):
        SequenceClassifierOutput(dict(whole), torch.ones(1))  # type: ignore[arg-type]


def test_outputs_are_outputs_of_transformers_where_it_is_loaded() -> None:
    with torch.no_grad():
        output = oracle.shared_pair("BertModel")[1](IDS)
    assert isinstance(output, transformers.utils.ModelOutput)
    for again in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert type(again) is type(output)
        assert torch.equal(again.pooler_output, output["pooler_output"])
    with pytest.raises(TypeError, match="keeps the fields"):
        output.pop("pooler_output")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_feature_extraction_of_transformers_runs(batch_size: int) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    vocabulary = {word: index for index, word in enumerate(words)}
    found = []
    for model in oracle.shared_pair("BertModel"):
        tokenizer = transformers.BertTokenizer(vocab=vocabulary)
        extract = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer)
        found.append(extract(["good film", "film film"], batch_size=batch_size, device="cpu"))
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-6)


@pytest.mark.parametrize("given", [{}, {"num_beams": 2}, {"batch_size": 2}, {"do_sample": True}])
@pytest.mark.parametrize("name", ["BertLMHeadModel", "ElectraForCausalLM"])
def test_the_text_generation_of_transformers_runs(name: str, given: dict[str, Any]) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(56))]
    vocabulary = {word: index for index, word in enumerate(words)}
    found = []
    for model in oracle.pair(name, eos_token_id=9, pad_token_id=0):
        tokenizer = transformers.BertTokenizer(vocab=vocabulary)
        write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        own = transformers.GenerationConfig(max_new_tokens=5, do_sample=False, num_beams=3)
        torch.manual_seed(0)
        asked = {"max_new_tokens": 6, "do_sample": False, **given}
        found.append([write(["w3 w4", "w5"], **asked), write("w3", generation_config=own)])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["BertModel", "CamembertModel", "FlaubertModel", "RemBertModel"])
def test_states_and_attentions_keep_their_gradients(name: str) -> None:
    mask = torch.ones_like(IDS)
    mask[1, 4:] = mask[2, 2:] = 0
    found = []
    for model in oracle.pair(name):
        output = model(IDS, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        looked_at = (*output.hidden_states, *output.attentions)
        for tensor in looked_at:
            tensor.retain_grad()
        (output[0] * mask[..., None]).pow(2).sum().backward()
        found.append([tensor.grad for tensor in looked_at])
    seen = mask[:, None, :, None] * mask[:, None, None, :]
    for one, other in zip(*found, strict=True):
        keep = mask[..., None] if one.dim() == 3 else seen
        error = ((one - other) * keep).abs().max() / (one * keep).abs().max()
        assert float(error) < oracle.tolerance(name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("name", ["BertModel", "RemBertModel", "BertForPreTraining"])
def test_what_nobody_used_has_no_gradient(name: str, used: int, training: bool) -> None:
    """Zeros in its place would let AdamW decay it."""
    found = []
    for model in oracle.pair(name):
        model = model.float().train(training)
        if not isinstance(model, transformers.PreTrainedModel):
            model.set_backend("auto")
        model(IDS)[used].pow(2).sum().backward()
        found.append({n for n, p in model.named_parameters() if p.grad is None})
    assert found[1] == found[0]


# Arguments


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_all_that_a_tokenizer_returns_may_be_passed(name: str) -> None:
    model = oracle.shared_pair(name)[1]
    ids = IDS if not name.endswith("ForMultipleChoice") else IDS[:, None].expand(-1, 3, -1)
    extras = ("special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping")
    with torch.no_grad():
        plain = model(ids).to_tuple()
        given = model(ids, **dict.fromkeys(extras, torch.ones(1))).to_tuple()
        pairs = zip(plain, given, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
    with pytest.raises(TypeError, match="nonsense"):
        model(ids, nonsense=1)


@pytest.mark.parametrize("name", [n for n in oracle.CLASSES if "QuestionAnswering" not in n])
def test_one_mask_for_all_texts(name: str) -> None:
    model, mask = oracle.shared_pair(name)[1], torch.tensor([1, 1, 1, 1, 1, 0, 0])
    row: dict[str, Tensor] = {"input_ids": IDS}
    if "labels" in oracle.inputs_of(name):
        row = {k: v for k, v in oracle.inputs_of(name)["labels"].items() if k != "attention_mask"}
    with torch.no_grad():
        wanted = model(**row, attention_mask=mask.expand(row["input_ids"].shape))
        shapes = [mask] if row["input_ids"].dim() == 3 else [mask, mask[None]]
        for given in shapes:
            found = model(**row, attention_mask=given)
            pairs = zip(wanted.to_tuple(), found.to_tuple(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "MPNetModel", "RemBertModel"])
@pytest.mark.parametrize("heads", [1, oracle.HEADS])
def test_masks_for_all_queries(name: str, heads: int) -> None:
    """(batch, heads, 1, keys): what get_extended_attention_mask makes."""
    theirs, ours = oracle.shared_pair(name)
    mask = oracle.padded_mask()
    wide = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, -1e30)
    wide = wide[:, None, None].expand(-1, heads, -1, -1)
    with torch.no_grad():
        expected, found = (m(IDS, attention_mask=wide)[0] for m in (theirs, ours))
    torch.testing.assert_close(found, expected)


# Other ways to run a model


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replicas as nn.DataParallel makes them, all on the CPU."""
    import importlib

    module = importlib.import_module("torch.nn.parallel.replicate")

    def copies(tensors: Any, devices: Any, detach: bool = False) -> Any:
        made = (lambda t: t.detach().clone()) if detach else torch.clone
        return [[made(tensor) for tensor in tensors] for _ in devices]

    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    return module.replicate


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name", ["BertForTokenClassification", "FlaubertModel", "CamembertForCausalLM"]
)
def test_replicas_compute_with_their_own_weights(name: str, training: bool, replicate: Any) -> None:
    names = ("dropout", "attention_dropout")
    if not name.startswith("Flaubert"):
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    model = oracle.pair(name, **dict.fromkeys(names, 0.0))[1].float().train(training)
    model.set_backend("auto")
    wanted = model(IDS)[0]
    wanted.pow(2).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    halves = [
        one(half)[0] for one, half in zip(replicate(model, [0, 1]), IDS.split(2), strict=True)
    ]
    assert torch.allclose(torch.cat(halves), wanted, atol=1e-4)
    torch.cat(halves).pow(2).sum().backward()
    for parameter, value in model.named_parameters():
        grad = gradients.get(parameter)
        assert (value.grad is None) == (grad is None)
        assert grad is None or torch.allclose(value.grad, grad, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
    with torch.no_grad():
        for one in replicate(model, [0, 1], True):
            assert torch.allclose(one(IDS)[0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["BertModel", "RemBertForMaskedLM", "FlaubertModel"])
@pytest.mark.parametrize("strict", [False, True])
def test_exports_end_in_a_sentence(name: str, strict: bool) -> None:
    model = oracle.pair(name)[1]
    with pytest.raises(NotImplementedError, match=r"which tokens of this one input are padding"):
        torch.export.export(model, (IDS,), strict=strict)
    with pytest.raises(NotImplementedError, match=r"which tokens of this one input are padding"):
        torch.onnx.export(model, (IDS,), "never.onnx", dynamo=False)
    assert torch.equal(model(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_exports_of_apertus_end_in_a_sentence(strict: bool) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
    model = fastbert.ApertusForCausalLM(fastbert.ApertusConfig(**sizes)).eval()
    with pytest.raises(NotImplementedError, match=r"or export the transformers model"):
        torch.export.export(model, (IDS,), strict=strict)


def test_an_image_tower_is_exported() -> None:
    sizes: dict[str, Any] = {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 64}
    sizes |= {"in_channels": [32], "out_channels": [32], "kernel_sizes": [3], "strides": [2]}
    sizes |= {"num_block_repeats": [1], "expand_ratios": [6]}
    model = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**sizes)).eval()
    first, second = torch.randn(2, 1, 3, 32, 32)
    exported = torch.export.export(model, (), {"pixel_values": first}).module()
    found, wanted = exported(pixel_values=second), model(pixel_values=second)
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output)


def test_dynamic_quantization_ends_in_a_sentence() -> None:
    model = oracle.pair("BertModel")[1]
    with pytest.raises(ValueError, match="quantization='int8'"):
        torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    assert not hasattr(model, "qconfig")


def test_offloaded_weights_end_in_a_sentence() -> None:
    model = oracle.pair("BertModel")[1].float()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad(), pytest.raises(NotImplementedError, match="without offloading"):
        model(IDS)


def test_the_attention_of_a_part_is_named_by_its_part() -> None:
    """As transformers spreads a name over configurations within one, or takes names by part."""

    def named(config: Any) -> list[str | None]:
        parts = (config, config.text_config, config.vision_config)
        return [part._attn_implementation for part in parts]

    config = fastbert.AlignConfig(attn_implementation="eager")
    assert named(config) == named(transformers.AlignConfig(attn_implementation="eager"))
    model = fastbert.AlignTextModel(config.text_config)
    model.set_attn_implementation({"": "sdpa"})
    assert named(config) == ["eager", "sdpa", "eager"]
    other = transformers.AlignConfig()
    for chosen in ("eager", {"": "sdpa"}, {"text_config": "sdpa"}, "flex_attention"):
        config._attn_implementation = other._attn_implementation = chosen
        assert named(config) == named(other)
    with pytest.raises(ValueError, match="is not supported"):
        model.set_attn_implementation({"text_config": {"": "spda"}})
