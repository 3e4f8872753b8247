"""Chats become the text and ids that transformers makes of them, by the template of the files.

The mechanism: the template runs in jinja's sandbox on plain copies of the messages, and its text is
tokenised without further special tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import pair
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import fastbert

NAMES = ["system", "user", "assistant"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
SPECIAL += [f"<|{name}_{end}|>" for name in NAMES for end in ("start", "end")]
TEMPLATE = """{{ bos_token }}{%- set ns = namespace(count=0) %}{%- for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}
    {%- endif %}{% set ns.count = ns.count + 1 %}
    {%- generation %}<|{{ m.role }}_start|>{{ m['content'] }}{% endgeneration %}
    {%- if not loop.last or m.role != 'assistant' or true %}<|{{ m.role }}_end|>{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for d in documents or [] %}{{ d.title }}{% endfor %}
{%- if add_generation_prompt %}<|assistant_start|>{% endif %}"""
CHAT = [
    {"role": "system", "content": " a cat "},
    {"role": "user", "content": "hello", "name": None},
    {"role": "assistant", "content": "world "},
]
TOOL = {"type": "function", "function": {"name": "f<é>", "parameters": {}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Apertus with a byte-level BPE and a template, all in files."""
    path = tmp_path_factory.mktemp("chat")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["hello world the cat sat on the mat"] * 5, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    made.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "padding_side": "left",
        "chat_template": "older",
    }
    settings |= dict(
        zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=False)
    )
    ours, _ = pair(dtype=torch.float32, vocab_size=made.get_vocab_size())
    ours.save_pretrained(path)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    return tuple(m.AutoTokenizer.from_pretrained(folder) for m in (fastbert, transformers))


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text": {"tokenize": False},
    "prompt": {"add_generation_prompt": True},
    "continued": {"continue_final_message": True, "tokenize": False},
    "continued-field": {"continue_final_message": "content"},
    "tools": {"tools": [TOOL], "tokenize": False},
    "documents": {"documents": [{"title": "a", "text": "b"}]},
    "tensors": {"return_tensors": "pt"},
    "ids": {"return_dict": False},
    "cut": {"truncation": True, "max_length": 4},
    "padded": {"padding": "max_length", "max_length": 60},
    "other": {"chat_template": "{{ messages | length }}{{ x }}{{ eos_token }}", "x": [1, 2.5, "c"]},
}


@pytest.mark.parametrize("name", CALLS)
def test_one_chat(name: str, both: tuple[Any, Any]) -> None:
    found, wanted = (one.apply_chat_template(CHAT, **CALLS[name]) for one in both)
    assert str(found) == str(wanted)
    assert CHAT[1]["name"] is None and CHAT[2]["content"] == "world "


def test_several_chats(both: tuple[Any, Any]) -> None:
    chats = [CHAT, CHAT[:2], [{"role": "user", "content": "é猫"}]]
    for options in ({"padding": True}, {"tokenize": False}, {"return_dict": False}):
        found, wanted = (one.apply_chat_template(chats, **options) for one in both)
        assert str(found) == str(wanted)


@pytest.mark.parametrize(
    ("chat", "options", "error", "message"),
    [
        ([], {}, ValueError, "chat is empty"),
        ("hello", {}, TypeError, "list of dictionaries"),
        (["hello"], {}, TypeError, "list of dictionaries"),
        ([{"role": "cat", "content": "a"}], {}, ValueError, "no such role"),
        (CHAT, {"chat_template": "{% if %}"}, ValueError, "cannot write"),
        (CHAT, {"chat_template": "{{ ''.__class__.__mro__ }}"}, ValueError, "cannot write"),
        (CHAT, {"tools": [print]}, ValueError, "JSON schema"),
        (CHAT, {"documents": ["a"]}, TypeError, "A document is"),
        (CHAT, {"return_assistant_tokens_mask": True}, ValueError, "leave it out"),
        (CHAT, {"sanitize_control_tokens": True}, ValueError, "leave it out"),
        (CHAT, {"chat_template": "x", "continue_final_message": True}, ValueError, "needs a last"),
        (
            CHAT,
            {"add_generation_prompt": True, "continue_final_message": True},
            ValueError,
            "give one of them",
        ),
    ],
)
def test_what_is_no_chat(
    chat: Any, options: Any, error: type[Exception], message: str, both: tuple[Any, Any]
) -> None:
    with pytest.raises(error, match=message):
        both[0].apply_chat_template(chat, **options)


def test_templates_of_several_names(both: tuple[Any, Any], tmp_path: Path, folder: Path) -> None:
    ours = fastbert.AutoTokenizer.from_pretrained(folder)
    ours.chat_template = {"default": TEMPLATE, "tool_use": "{{ tools | length }} tools"}
    ours.save_pretrained(tmp_path)
    for module in (fastbert, transformers):
        read = module.AutoTokenizer.from_pretrained(tmp_path)
        assert read.chat_template == ours.chat_template
        assert read.apply_chat_template(CHAT, tools=[TOOL], tokenize=False) == "1 tools"
    named = [{"name": "short", "template": "{{ messages[0].role }}"}]
    ours = fastbert.AutoTokenizer.from_pretrained(folder, chat_template=named)
    assert ours.apply_chat_template(CHAT, chat_template="short", tokenize=False) == "system"
    with pytest.raises(ValueError, match="name one of short"):
        ours.apply_chat_template(CHAT)
    ours.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        ours.apply_chat_template(CHAT)
    with pytest.raises(ValueError, match="chat_template is a text"):
        fastbert.AutoTokenizer.from_pretrained(folder, chat_template=3)


def test_without_jinja(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="pip install 'jinja2"):
        both[0].apply_chat_template(CHAT, chat_template="never compiled before")


# What models do with chats


GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 7}
PROMPTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": ("the cat", {}),
    "chat": (CHAT[:2], {}),
    "going-on": (CHAT, {}),
    "not-going-on": (CHAT, {"continue_final_message": False}),
    "chats": ([CHAT[:2], CHAT], {}),
    "new": (CHAT[:2], {"return_full_text": False}),
    "ids": (CHAT[:2], {"return_tensors": True}),
    "several": (CHAT[:2], {"num_beams": 2, "num_return_sequences": 2}),
    "tools": (CHAT[:2], {"tools": [TOOL]}),
    "documents": (CHAT[:2], {"documents": [{"title": "cat", "text": ""}]}),
    "special": (CHAT[:2], {"add_special_tokens": True}),
}


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> list[Any]:
    return [m.pipeline("text-generation", model=str(folder)) for m in (fastbert, transformers)]


@pytest.mark.parametrize("name", PROMPTS)
def test_pipelines_go_on_with_chats(name: str, pipelines: list[Any]) -> None:
    prompt, options = PROMPTS[name]
    found, wanted = (one(prompt, **GREEDY, **options) for one in pipelines)
    assert found == wanted


def test_chats_in_batches_and_streams(pipelines: list[Any]) -> None:
    ours, _ = pipelines
    chats = [CHAT[:2], CHAT, "the cat"]
    alone = [ours(chat, **GREEDY) for chat in chats]
    assert ours(chats, batch_size=3, **GREEDY) == alone
    assert list(ours(iter(chats), **GREEDY)) == alone
    with pytest.raises(ValueError, match="'role' and 'content'"):
        ours([{"role": "user"}], **GREEDY)
    with pytest.raises(TypeError, match="takes a text"):
        ours([1], **GREEDY)


def test_a_padded_batch_writes_what_each_text_alone_does(folder: Path) -> None:
    tokenizer = fastbert.AutoTokenizer.from_pretrained(folder)
    model = fastbert.AutoModelForCausalLM.from_pretrained(folder)
    batch = tokenizer(["hello", "the cat sat on the mat"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and "token_type_ids" not in batch
    texts = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=8), True)
    for text, prompt in zip(texts, ["hello", "the cat sat on the mat"], strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=8)
        assert text == tokenizer.decode(alone[0], skip_special_tokens=True)
