"""Every setting that changes scores changes them as in transformers, so the texts are the same.

The mechanism: one list of changes in transformers' order; the caller's own stand behind those that
penalise and before those that only drawing asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from apertus_pair import exact_norms, ids, pair

import fastbert


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


SETTINGS: dict[str, dict[str, Any]] = {
    "bad-words": {"bad_words_ids": [[7], [9, 11], [2], *([i] for i in range(20, 40))]},
    "bias": {"sequence_bias": [[[8], 9.0], [[8, 8], -60.0], [[8, 9], 50.0], [[4, 5, 6], -3.0]]},
    "bias-dict": {"sequence_bias": {(8,): 9.0, (8, 8): -60.0}},
    "suppress": {"suppress_tokens": list(range(4, 30))},
    "begin-suppress": {"begin_suppress_tokens": [22, *range(40, 53)]},
    "forced-end": {"forced_eos_token_id": 7},
    "forced-ends": {"forced_eos_token_id": [7, 9]},
    "decay": {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": [7, 12]},
    "invalid": {"remove_invalid_values": True, "suppress_tokens": [5]},
    "nothing": {"top_k": None, "top_p": None, "temperature": None, "repetition_penalty": None},
    "ngrams": {"no_repeat_ngram_size": 1, "min_new_tokens": 4, "eos_token_id": [7, 12, 20]},
}
DRAWING: dict[str, dict[str, Any]] = {
    "min-p": {"min_p": 0.3},
    "typical": {"typical_p": 0.4},
    "epsilon": {"epsilon_cutoff": 0.05},
    "eta": {"eta_cutoff": 0.1},
    "all": {"min_p": 0.01, "typical_p": 0.9, "top_k": 30, "top_p": 0.9, "temperature": 1.7},
    "normal": {"renormalize_logits": True, "bad_words_ids": [[9]]},
}


def texts(options: dict[str, Any]) -> list[Any]:
    batch = ids(2, 6)
    found = []
    for model in pair():
        torch.manual_seed(7)
        given = {"attention_mask": torch.ones_like(batch), "max_new_tokens": 9, **options}
        written = model.generate(batch, output_scores=True, return_dict_in_generate=True, **given)
        found.append((written.sequences, torch.stack(written.scores)))
    return found


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*SETTINGS, *DRAWING])
def test_scores_and_texts_are_those_of_transformers(name: str, beams: int) -> None:
    options: dict[str, Any] = {**SETTINGS, **DRAWING}[name]
    (found, scores), (wanted, right) = texts(
        {**options, "do_sample": name in DRAWING, "num_beams": beams}
    )
    if name != "forced-ends" or beams == 1:  # of equally likely ends, any
        assert torch.equal(found, wanted)
    torch.testing.assert_close(scores, right, atol=1e-5, rtol=1e-5)


def test_every_setting_changes_something() -> None:
    plain = texts({"do_sample": False})[0][0]
    for name in SETTINGS.keys() - {"nothing", "invalid"}:
        found = texts({**SETTINGS[name], "do_sample": False})[0][0]
        assert not torch.equal(plain, found), name
    drawn = texts({"do_sample": True})[0][1]
    for name, options in DRAWING.items():
        assert not torch.equal(drawn[0], texts({**options, "do_sample": True})[0][1][0]), name


def test_a_prompt_of_one_token_and_its_forced_first() -> None:
    ours, theirs = pair()
    start = torch.tensor([[1]])
    given = {"forced_bos_token_id": 8, "begin_suppress_tokens": [7, 9, 12], "max_new_tokens": 5}
    found = ours.generate(start, **given)
    assert found[0, 1] == 8
    assert torch.equal(found, theirs.generate(start, attention_mask=start, **given))


def test_own_changes_stand_before_drawing() -> None:
    seen = []
    for model in pair():
        kept: list[torch.Tensor] = []

        def watch(_: torch.Tensor, scores: torch.Tensor, kept: Any = kept) -> torch.Tensor:
            kept.append(scores.clone())
            return scores

        torch.manual_seed(1)
        model.generate(
            ids(1, 5),
            attention_mask=torch.ones(1, 5, dtype=torch.long),
            do_sample=True,
            temperature=3.0,
            top_k=4,
            suppress_tokens=[6, 9],
            max_new_tokens=2,
            logits_processor=[watch],
        )
        seen.append(torch.stack(kept))
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)


def test_settings_survive_a_file(tmp_path: Path) -> None:
    ours, theirs = pair()
    options: dict[str, Any] = {"sequence_bias": {(8, 9): 2.0}, "bad_words_ids": [[7]], "min_p": 0.1}
    ours.generation_config = fastbert.GenerationConfig(eos_token_id=2, pad_token_id=3, **options)
    ours.save_pretrained(tmp_path)
    read = fastbert.ApertusForCausalLM.from_pretrained(tmp_path)
    assert read.generation_config.sequence_bias == [[[8, 9], 2.0]]
    found = read.generate(ids(1, 5), max_new_tokens=6)
    assert torch.equal(found, ours.generate(ids(1, 5), max_new_tokens=6))
    loaded = type(theirs).from_pretrained(tmp_path)
    mask = torch.ones(1, 5, dtype=torch.long)
    wanted = loaded.generate(ids(1, 5), attention_mask=mask, max_new_tokens=6)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_words_ids": [7]}, "list of lists"),
        ({"bad_words_ids": []}, "list of lists"),
        ({"bad_words_ids": [[99]]}, "scores 53 tokens"),
        ({"sequence_bias": {7: 1.0}}, "list of .token ids, bias."),
        ({"suppress_tokens": 5}, "list of token ids"),
        ({"exponential_decay_length_penalty": 3}, "is a pair"),
        ({"do_sample": True, "min_p": 1.5}, "min_p is a share"),
        ({"do_sample": True, "typical_p": -1}, "typical_p is a share"),
        ({"do_sample": True, "top_p": -0.5}, "top_p is a share"),
        ({"do_sample": True, "top_k": -1}, "top_k is a number"),
        ({"repetition_penalty": -2.0}, "repetition_penalty must be positive"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match=message):
        ours.generate(ids(1, 4), max_new_tokens=3, **options)
