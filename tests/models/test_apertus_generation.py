"""Apertus writes the texts that transformers writes, alone and in padded batches.

The mechanism: generate() over a cache with room, positions counted by the mask.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import close, exact_norms, ids, pair

import fastbert
from fastbert.generation.greedy import likeliest
from fastbert.pipelines import text_generation
from fastbert.tools.cli import main


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 12},
    "no-length": {},
    "max-length": {"max_length": 14},
    "no-cache": {"max_new_tokens": 6, "use_cache": False},
    "penalty": {"max_new_tokens": 12, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "beams": {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2},
    "ends": {"max_new_tokens": 30, "eos_token_id": [2, 7, 12, 20, 31, 33]},
    "beams-ends": {"max_new_tokens": 9, "num_beams": 2, "eos_token_id": [7, 12, 20]},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_are_those_of_transformers(name: str) -> None:
    ours, theirs = pair()
    batch = ids(2, 6)
    mask = torch.ones_like(batch)
    given = SEARCHES[name]
    found = ours.generate(batch, attention_mask=mask, **given)
    assert torch.equal(found, theirs.generate(batch, attention_mask=mask, **given))


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 4096, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_token_is_the_first_of_the_highest(vocabulary: int, dtype: torch.dtype) -> None:
    scores = torch.randn(5, 2, vocabulary, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores[1] = float("-inf")
    scores[2, 0, vocabulary // 2 :] = 9.0
    scores[3, 1, vocabulary // 3 :] = float("nan")
    assert torch.equal(likeliest(scores), scores.argmax(dim=-1))
    assert likeliest(scores)[2, 0] == vocabulary // 2
    assert torch.equal(likeliest(scores[:, -1, ::2]), scores[:, -1, ::2].argmax(dim=-1))


def test_sampling_draws_what_transformers_draws() -> None:
    ours, theirs = pair()
    batch = ids(2, 6)
    mask = torch.ones_like(batch)
    texts = []
    for model in (ours, theirs):
        torch.manual_seed(7)
        given = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
        texts.append(model.generate(batch, attention_mask=mask, max_new_tokens=12, **given))
    assert torch.equal(*texts)


def test_padding_on_the_left_changes_no_text() -> None:
    ours, theirs = pair()
    long, short = ids(1, 9), ids(1, 4, seed=2)
    batch = torch.cat([long, torch.cat([torch.full((1, 5), 3), short], dim=1)])
    found = ours.generate(batch, max_new_tokens=10)  # the mask is found by the padding token
    assert torch.equal(found[:1], ours.generate(long, max_new_tokens=10))
    assert torch.equal(found[1:, 5:], ours.generate(short, max_new_tokens=10))
    assert torch.equal(found, theirs.generate(batch, max_new_tokens=10))


def test_settings_of_a_checkpoint(tmp_path: Path) -> None:
    ours, theirs = pair()
    assert ours.generation_config.eos_token_id == 2 and ours.generation_config.pad_token_id == 3
    theirs.generation_config.eos_token_id = [2, 7, 12]
    theirs.save_pretrained(tmp_path)
    read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path)
    assert read.generation_config.eos_token_id == [2, 7, 12]
    with pytest.raises(ValueError, match="max_length=4 leaves no room"):
        read.generate(ids(1, 6), max_length=4)
    assert read.generate(max_new_tokens=3)[0, 0] == 1
    with pytest.raises(ValueError, match="token_type_ids"):
        read.generate(ids(1, 6), token_type_ids=torch.zeros(1, 6, dtype=torch.long))


def test_texts_beyond_the_positions_go_on() -> None:
    ours, theirs = pair()
    batch = ids(1, 60)
    found = ours.generate(batch, max_new_tokens=10)
    mask = torch.ones_like(batch)
    assert torch.equal(found, theirs.generate(batch, attention_mask=mask, max_new_tokens=10))
    with pytest.warns(UserWarning, match="more than the 64"):
        ours.generate(ids(1, 70), max_new_tokens=1)


def test_adapters_of_peft_write_and_merge() -> None:
    import peft

    batch = ids(2, 6)
    settings = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    chosen = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    ours, theirs = (
        peft.get_peft_model(model, peft.LoraConfig(**settings, **chosen)).eval()
        for model in pair(dtype=torch.float32)
    )
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        before = ours(input_ids=batch).logits
        close(before, theirs(input_ids=batch).logits, 1e-5)
        given = {"attention_mask": torch.ones_like(batch), "max_new_tokens": 5}
        found = ours.generate(input_ids=batch, **given)
        assert torch.equal(found, theirs.generate(input_ids=batch, **given))
        close(ours.merge_and_unload()(batch).logits, before, 1e-5)
    ours, _ = pair(dtype=torch.float32)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="prompts that this adapter learned"):
        peft.get_peft_model(ours, prompts).generate(input_ids=batch, max_new_tokens=3)


def test_beams_after_a_grown_cache() -> None:
    """Reordered keys are others than the memory with room holds."""
    ours, theirs = pair()
    batch = ids(2, 40)
    given = {"max_new_tokens": 30, "num_beams": 3, "attention_mask": torch.ones_like(batch)}
    assert torch.equal(ours.generate(batch, **given), theirs.generate(batch, **given))


# The pipeline

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
WORDS += [f"##{letter}" for letter in "abcdefghijklmnopqrstuv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of its own, both in files."""
    path = tmp_path_factory.mktemp("apertus")
    options = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    ours, _ = pair(dtype=torch.float32, **options)
    ours.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> tuple[Any, Any]:
    tokenizer = fastbert.BertTokenizer.from_pretrained(folder)
    model = fastbert.AutoModelForCausalLM.from_pretrained(folder)
    ours = fastbert.pipeline("text-generation", model=model, tokenizer=tokenizer)
    theirs = transformers.pipeline(
        "text-generation",
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.BertTokenizer.from_pretrained(folder),
    )
    return ours, theirs


GREEDY = {"do_sample": False, "max_new_tokens": 8}
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": ("a b cab", GREEDY),
    "list": (["a b", "c"], GREEDY),
    "new-text": ("a b", {**GREEDY, "return_full_text": False}),
    "ids": ("a b", {**GREEDY, "return_tensors": True}),
    "prefix": ("a b", {**GREEDY, "prefix": "c d "}),
    "several": ("a b", {**GREEDY, "num_beams": 3, "num_return_sequences": 2}),
    "special": ("a b", {**GREEDY, "skip_special_tokens": False, "add_special_tokens": False}),
    "max-length": ("a b c", {"do_sample": False, "max_length": 12, "max_new_tokens": None}),
    "usual": ("a b", {}),
    "empty": ("", {**GREEDY, "add_special_tokens": False}),
}


@pytest.mark.parametrize("name", CALLS)
def test_pipeline_answers_as_transformers_does(name: str, pipelines: tuple[Any, Any]) -> None:
    inputs, options = CALLS[name]
    answers = []
    for one in pipelines:
        torch.manual_seed(3)
        answers.append(one(inputs, **options))
    assert answers[0] == answers[1]


def test_pipeline_in_batches(pipelines: tuple[Any, Any]) -> None:
    ours, _ = pipelines
    texts = ["a", "a b c d e", "b b"]
    assert ours(texts, batch_size=3, **GREEDY) == ours(texts, **GREEDY)
    assert list(ours(iter(texts), **GREEDY)) == ours(texts, **GREEDY)
    written = ours("a b", stop_sequence="zz", **GREEDY)[0]["generated_text"]
    stop = written[-1]
    cut = ours("a b", stop_sequence=[stop, "zz"], **GREEDY)[0]["generated_text"]
    assert stop in cut[3:] and written.startswith(cut)
    with pytest.raises(TypeError, match="no option 'nonsense'"):
        ours("a", nonsense=1)
    with pytest.raises(ValueError, match="Give one of"):
        ours("a", return_tensors=True, return_text=True)
    with pytest.raises(ValueError, match="hole"):
        ours("a", handle_long_generation="cut")
    with pytest.raises(ValueError, match="no chat template"):
        ours([{"role": "user", "content": "a"}])
    with pytest.raises(TypeError, match="takes a text"):
        ours([{"text": "a"}])
    long = ours("a " * 70, handle_long_generation="hole", return_tensors=True, **GREEDY)
    assert len(long[0]["generated_token_ids"]) <= 64


def test_pipeline_takes_its_input_by_name(pipelines: tuple[Any, Any]) -> None:
    ours, theirs = pipelines
    for options in ({"text_inputs": "a b"}, {"text_inputs": ["a b", "c"], "padding": True}):
        assert ours(**options, **GREEDY) == theirs(**options, **GREEDY)
    for given in ((), ("a b",)):
        with pytest.raises(TypeError, match=r"not (None|two of these): give it as the first"):
            ours(*given, **({"text_inputs": "c"} if given else {}))
    with pytest.raises(ValueError, match="nothing of output_scores"):
        ours("a b", output_scores=True, return_dict_in_generate=True)


def test_pipeline_reads_arguments_of_loading_anywhere(folder: Path) -> None:
    for more in ({"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}):
        pipe = fastbert.pipeline("text-generation", model=folder, model_kwargs=more)
        assert pipe.model.dtype is torch.bfloat16
    pipe = fastbert.pipeline(
        "text-generation", model=folder, dtype="auto", model_kwargs={"quantization": "int8"}
    )
    assert pipe.model.lm_head.qweight.dtype is torch.int8
    with pytest.raises(TypeError, match="dtype='float32', and dtype='bfloat16' in model_kwargs"):
        fastbert.pipeline(
            "text-generation", folder, dtype="float32", model_kwargs={"dtype": "bfloat16"}
        )


def test_streamers(pipelines: tuple[Any, Any], folder: Path) -> None:
    ours, theirs = pipelines
    streamer = transformers.TextStreamer(
        theirs.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    shown = io.StringIO()
    with redirect_stdout(shown):
        whole = ours("a b", streamer=streamer, return_full_text=False, **GREEDY)
    assert shown.getvalue().strip() == whole[0]["generated_text"].strip()


def test_command_writes_texts_as_they_grow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts, written = tmp_path / "prompts", tmp_path / "written"
    prompts.write_text("a b\nc\n")
    monkeypatch.setitem(text_generation._USUAL, "max_new_tokens", 12)
    torch.manual_seed(5)
    command = ["run", str(prompts), "--task", "text-generation", "--model", str(folder)]
    assert main([*command, "-o", str(written)]) == 0
    lines = written.read_text().splitlines()
    torch.manual_seed(5)
    answers = fastbert.pipeline("text-generation", model=folder)(["a b", "c"])
    assert lines == [one[0]["generated_text"] for one in answers]
