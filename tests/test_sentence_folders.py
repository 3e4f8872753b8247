"""modules.json is a sequence, and every setting of its folder counts.

A folder that sentence-transformers saves gives the vectors that it gives there: modules run in the
order in which they are listed, each with its own settings, and what is not supported is refused by
name. Expected values are those of sentence-transformers on the same folder.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers as st
import torch
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer import modules as stm
from torch import nn

import fastbert
from fastbert.embedding.modules import Dense
from fastbert.embedding.pooling import MODES

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from sentence_folders import HIDDEN, TEXTS, both, edited, saved, tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def camembert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("camembert") / "model", "camembert")


def same(folder: Path, texts: list[str] = TEXTS, **arguments: Any) -> None:
    ours, theirs = both(folder)
    found, expected = ours.encode(texts, **arguments), theirs.encode(texts, **arguments)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert ours.dimension == ours.get_embedding_dimension() == found.shape[1]


ORDERS: dict[str, Callable[[], list[nn.Module]]] = {
    "pool": lambda: [stm.Pooling(HIDDEN)],
    "normalize": lambda: [stm.Pooling(HIDDEN), stm.Normalize()],
    "normalize-dense": lambda: [stm.Pooling(HIDDEN), stm.Normalize(), stm.Dense(HIDDEN, 8)],
    "dense-normalize": lambda: [stm.Pooling(HIDDEN), stm.Dense(HIDDEN, 8), stm.Normalize()],
    "normalize-twice": lambda: [
        stm.Pooling(HIDDEN),
        stm.Normalize(),
        stm.Dense(HIDDEN, 8),
        stm.Dropout(0.5),
        stm.Normalize(),
        stm.Dense(8, 4, bias=False, activation_function=None),
    ],
    "layer-norm": lambda: [stm.Pooling(HIDDEN), stm.LayerNorm(HIDDEN), stm.Dense(HIDDEN, 5)],
    "residual": lambda: [
        stm.Pooling(HIDDEN),
        stm.Dense(HIDDEN, HIDDEN, use_residual=True),
        stm.Dense(HIDDEN, 6, use_residual=True),
    ],
    "tokens-first": lambda: [
        stm.Dense(HIDDEN, 12, module_input_name="token_embeddings"),
        stm.Normalize(module_input_name="token_embeddings"),
        stm.Pooling(12, ("max", "mean")),
    ],
    "a-feature-of-its-own": lambda: [
        stm.Dense(
            HIDDEN,
            HIDDEN,
            module_input_name="token_embeddings",
            module_output_name="beside",
        ),
        stm.Pooling(HIDDEN, "cls"),
        stm.Normalize(module_input_name="nothing"),
    ],
    "pooled-cls": lambda: [
        stm.Pooling(HIDDEN, "max"),
        stm.Dense(HIDDEN, 7, module_output_name="cls_token_embeddings"),
        stm.Pooling(HIDDEN, ("mean", "cls")),
    ],
    "pool-twice": lambda: [
        stm.Pooling(HIDDEN, "cls"),
        stm.Dense(HIDDEN, 3),
        stm.Pooling(HIDDEN, ["weightedmean", "lasttoken"]),
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_modules_run_in_their_order(tmp_path: Path, bert: Path, order: str) -> None:
    same(saved(tmp_path, bert, ORDERS[order](), safe=order != "dense-normalize"))


@pytest.mark.parametrize(
    "modes", [*((mode,) for mode in MODES), MODES, ("lasttoken", "cls")], ids="-".join
)
@pytest.mark.parametrize("include", [True, False])
def test_pooling_with_and_without_the_prompt(
    tmp_path: Path, bert: Path, modes: Any, include: bool
) -> None:
    pooling = stm.Pooling(HIDDEN, modes, include_prompt=include)
    folder = saved(tmp_path, bert, [pooling], prompts={"q": "query : "})
    same(folder, prompt_name="q")
    same(folder, prompt="the red house ")
    same(folder, prompt="far " * 60)
    same(folder)


def test_a_camembert_is_cut_to_its_positions(
    tmp_path: Path, camembert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path, camembert, [stm.Pooling(HIDDEN)])
    ours, theirs = both(folder)
    assert ours.max_seq_length == 40
    assert "positions for 40 tokens" in caplog.text
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)
    assert ours.encode("far " * 100).shape == (HIDDEN,)
    for wrong in (0, 41, -1, True):
        with pytest.raises(ValueError, match="max_seq_length is"):
            fastbert.SentenceEncoder.from_pretrained(folder, max_seq_length=wrong)
    ours.max_seq_length = 3
    with pytest.raises(ValueError, match="at most 40"):
        ours.max_seq_length = 41
    assert ours.max_seq_length == 3


ACTIVATIONS = [
    name
    for name in (*nn.modules.activation.__all__, "Identity", "Dropout")
    if name not in ("MultiheadAttention", "Softmax2d", "Threshold", "RReLU")
]


@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_every_activation(tmp_path: Path, bert: Path) -> None:
    folder = saved(tmp_path, bert, [stm.Pooling(HIDDEN), stm.Dense(HIDDEN, 9 * 2)])
    ours, theirs = both(folder)
    prelu = nn.PReLU()
    for name in ACTIVATIONS:
        module = getattr(nn, name)().eval()
        theirs[2].activation_function = module
        target = tmp_path / name
        theirs.save(str(target), create_model_card=False)
        ours = fastbert.SentenceEncoder.from_pretrained(target)
        found = ours.encode(TEXTS)
        np.testing.assert_allclose(found, theirs.encode(TEXTS), rtol=1e-6, atol=1e-6, err_msg=name)
        copy = pickle.loads(pickle.dumps(ours))
        for index, text in enumerate(TEXTS):
            assert np.array_equal(copy.encode(text), found[index]), name
        shutil.rmtree(target)
    assert prelu.weight.item() == 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    modules = [stm.Pooling(HIDDEN), stm.Dense(HIDDEN, 8), stm.Normalize()]
    return saved(tmp_path_factory.mktemp("saved"), bert, modules)


def typed(index: int, kind: str) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content[index]["type"] = kind
        return content

    return change


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        (0, "sentence_transformers.models.Transformer"),
        (1, "sentence_transformers.models.Pooling"),
        (1, "sentence_transformers.models.Pooling.Pooling"),
        (1, "sentence_transformers.sentence_transformer.modules.Pooling"),
        (2, "sentence_transformers.base.modules.Dense"),
        (2, "sentence_transformers.models.Dense"),
        (3, "sentence_transformers.models.Normalize"),
    ],
)
def test_elder_names_of_modules(tmp_path: Path, folder: Path, index: int, kind: str) -> None:
    same(edited(folder, tmp_path, "modules.json", typed(index, kind)))


@pytest.mark.parametrize(
    ("index", "kind", "told"),
    [
        (0, "custom_st.Transformer", "another package"),
        (0, "transformers_modules.x.custom_st.Transformer", "another package"),
        (0, "Transformer", "another package"),
        (1, "my.sentence_transformers.models.Pooling", "another package"),
        (1, "sentence_transformers_extra.models.Pooling", "another package"),
        (0, "sentence_transformers.models.StaticEmbedding", "no transformer"),
        (0, "sentence_transformers.base.modules.router.Router", "different models"),
        (0, "sentence_transformers.models.Asym", "different models"),
        (0, "sentence_transformers.models.CLIPModel", "images"),
        (1, "sentence_transformers.models.CNN", "convolves"),
        (1, "sentence_transformers.models.WeightedLayerPooling", "several layers"),
        (1, "sentence_transformers.sparse_encoder.modules.SpladePooling", "not supported"),
        (1, "sentence_transformers.elsewhere.Pooling", "not supported"),
        (0, "sentence_transformers.models.Pooling", "one Transformer"),
        (1, "sentence_transformers.models.Transformer", "one Transformer"),
    ],
)
def test_other_modules_are_refused_by_name(
    tmp_path: Path, folder: Path, index: int, kind: str, told: str
) -> None:
    path = edited(folder, tmp_path, "modules.json", typed(index, kind))
    with pytest.raises(ValueError, match=told) as error:
        fastbert.SentenceEncoder.from_pretrained(path)
    assert kind in str(error.value)


def test_a_router_is_refused(tmp_path: Path, bert: Path) -> None:
    routes = {
        name: [stm.Transformer(str(bert)), stm.Pooling(HIDDEN)] for name in ("query", "document")
    }
    model = st.SentenceTransformer(modules=[Router.for_query_document(*routes.values())])
    model.save(str(tmp_path), create_model_card=False)
    with pytest.raises(ValueError, match="Router"):
        fastbert.SentenceEncoder.from_pretrained(tmp_path)


def named(**values: Any) -> Callable[[Any], Any]:
    return lambda content: {**content, **values}


METHOD = {"method": "forward", "method_output_name": "pooler_output"}
BERT, GENERAL = "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING, DENSE = "1_Pooling/config.json", "2_Dense/config.json"


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        (POOLING, {"pooling_mode_of_mine": True}, "pooling_mode_of_mine"),
        (POOLING, {"pooling_mode": "median"}, "median"),
        (POOLING, {"pooling_mode": []}, "no mode"),
        (POOLING, {"include_prompt": "no"}, "include_prompt"),
        (DENSE, {"activation_function": "my.package.Tanh"}, "my.package.Tanh"),
        (DENSE, {"activation_function": "torch.tanh"}, "torch.tanh"),
        (DENSE, {"activation_function": "torch.nn.modules.container.Sequential"}, "Sequential"),
        (DENSE, {"activation_function": "torch.nn.modules.activation.Threshold"}, "Threshold"),
        (DENSE, {"activation_function": None}, "None"),
        (DENSE, {"bias": False}, "do not belong together"),
        (DENSE, {"in_features": 31}, "do not belong together"),
        (DENSE, {"module_input_name": "elsewhere"}, "elsewhere"),
        (DENSE, {"module_output_name": "elsewhere", "module_input_name": "x"}, "'x'"),
        (BERT, {"max_seq_length": 0}, "max_seq_length"),
        (BERT, {"max_seq_length": "many"}, "max_seq_length"),
        (BERT, {"something": 1}, "something"),
        (BERT, {"transformer_task": "fill-mask"}, "fill-mask"),
        (BERT, {"modality_config": {"text": METHOD}}, "pooler_output"),
        (BERT, {"query_expansion": {"strategy": "min", "length": 9}}, "query_expansion"),
        (BERT, {"processing_kwargs": {"text": {"stride": 2}}}, "stride"),
        (BERT, {"do_lower_case": "yes"}, "do_lower_case"),
        ("adapter_config.json", {"peft_type": "LORA"}, "PEFT"),
        (GENERAL, {"model_type": "SparseEncoder"}, "SparseEncoder"),
        (GENERAL, {"prompts": {"query": 3}}, "prompts"),
        (GENERAL, {"default_prompt_name": "nobody"}, "nobody"),
        (GENERAL, {"truncate_dim": 0}, "truncate_dim"),
        (GENERAL, {"similarity_fn_name": "maxsim"}, "maxsim"),
    ],
)
def test_a_setting_that_is_not_obeyed_is_named(
    tmp_path: Path, folder: Path, name: str, values: dict[str, Any], told: str
) -> None:
    path = edited(folder, tmp_path, name, named(**values))
    with pytest.raises(ValueError, match=told):
        fastbert.SentenceEncoder.from_pretrained(path)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [3],
        [{"path": ""}],
        [{"type": "sentence_transformers.models.Transformer", "path": "../elsewhere"}],
        [{"type": "sentence_transformers.models.Transformer", "path": "/etc"}],
        [{"type": "sentence_transformers.models.Transformer", "path": ""}],
        [{"type": "sentence_transformers.models.Transformer", "name": "a"}] * 2,
    ],
)
def test_a_broken_list_of_modules_gets_a_sentence(
    tmp_path: Path, folder: Path, entries: list[Any]
) -> None:
    path = edited(folder, tmp_path, "modules.json", lambda _: entries)
    with pytest.raises(ValueError, match=r"expected|own name|no vector"):
        fastbert.SentenceEncoder.from_pretrained(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (POOLING, {"pooling_mode": ["max", "cls"], "pooling_mode_mean_tokens": True}),
        (DENSE, {"activation_function": "torch.nn.GELU"}),
        (BERT, {"max_seq_length": 6}),
        (BERT, {"do_lower_case": True}),
        (BERT, {"tokenizer_args": {"model_max_length": 5}, "max_seq_length": 9}),
        (
            BERT,
            {
                "processor_kwargs": {"do_lower_case": True, "truncation_side": "left"},
                "max_seq_length": 6,
            },
        ),
        (BERT, {"config_args": {"num_hidden_layers": 1, "layer_norm_eps": 0.5}}),
        (BERT, {"model_args": {"attn_implementation": "eager", "trust_remote_code": True}}),
        (BERT, {"processing_kwargs": {"text": {"max_length": 5}, "common": {"padding": True}}}),
        (BERT, {"processing_kwargs": {"text": {"add_special_tokens": False}}}),
        (BERT, {"unpad_inputs": False}),
        (GENERAL, {"truncate_dim": 5}),
        (GENERAL, {"prompts": {"red": "red "}, "default_prompt_name": "red"}),
        (GENERAL, {"prompts": {"query": "", "document": ""}, "default_prompt_name": "query"}),
        (GENERAL, {"prompts": {"query": None}}),
    ],
)
def test_settings_are_obeyed(
    tmp_path: Path, folder: Path, name: str, values: dict[str, Any]
) -> None:
    path = edited(folder, tmp_path, name, named(**values))
    if name == POOLING:
        modules = json.loads((path / "modules.json").read_text())
        (path / "modules.json").write_text(json.dumps(modules[:2]))
    texts = [*TEXTS[:2], *TEXTS[3:], "The CAT [MASK] Σας"]
    same(path, texts)


def test_lengths_by_task(tmp_path: Path, folder: Path) -> None:
    values = {"query_length": 5, "document_length": 7}
    path = edited(folder, tmp_path, BERT, named(**values))
    ours, theirs = both(path)
    for name in ("encode_query", "encode_document", "encode"):
        found, expected = getattr(ours, name)(TEXTS), getattr(theirs, name)(TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_only_other_programs_read_is_said(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(folder, tmp_path, GENERAL, named(mystery=1, requirements={"einops": ">=1"}))
    path = edited(path, path, DENSE, named(enigma=2))
    path = edited(path, path, BERT, named(max_seq_length=41))
    with caplog.at_level(logging.WARNING, "fastbert"):
        encoder = fastbert.SentenceEncoder.from_pretrained(path)
    for told in ("mystery", "einops", "enigma", "41"):
        assert told in caplog.text
    assert encoder.max_seq_length == 40


def test_callers_go_before_the_folder(folder: Path) -> None:
    options: dict[str, Any] = {
        "prompts": {"red": "red ", "query": "far "},
        "default_prompt_name": "red",
        "truncate_dim": 4,
        "similarity_fn_name": "dot",
        "processor_kwargs": {"do_lower_case": True, "model_max_length": 7},
        "config_kwargs": {"num_hidden_layers": 1},
        "model_kwargs": {"attn_implementation": "eager"},
    }
    ours, theirs = both(folder, **options)
    assert ours.prompts == theirs.prompts
    assert ours.max_seq_length == theirs.max_seq_length == 7
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    texts = [*TEXTS, "The RED House"]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-6)
    np.testing.assert_allclose(ours.encode_query(texts), theirs.encode_query(texts), atol=1e-6)
    half = fastbert.SentenceEncoder.from_pretrained(folder, model_kwargs={"torch_dtype": "float16"})
    assert half.model.dtype == half.dense[0].linear.weight.dtype == torch.float16


def test_weights_of_another_module_are_refused(tmp_path: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "more": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="more"):
        fastbert.SentenceEncoder.from_pretrained(tmp_path)


def test_modules_that_do_not_fit_are_refused(folder: Path) -> None:
    encoder = fastbert.SentenceEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match="takes 5 values"):
        fastbert.SentenceEncoder(encoder.model, encoder.tokenizer, dense=[Dense(5, 3)])
    with pytest.raises(ValueError, match="no vector"):
        fastbert.SentenceEncoder(encoder.model, encoder.tokenizer, modules=[])
