"""Run llama.cpp with 8-bit weights, through the npm package that ships its engine.

The package is looked for where FASTBERT_BENCH_NODE says, a folder in which
``npm install --ignore-scripts node-llama-cpp`` was run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FOLDER = "FASTBERT_BENCH_NODE"
_SERVER = Path(__file__).with_name("llama_cpp.mjs")
_MOST_TEXTS = 16
_CONTEXT = 4608  # tokens of all texts together
# Names of tensors: ours, and those of a GGUF file.
_OUTER = {
    "model.embed_tokens.weight": ("token_embd.weight", "output.weight"),  # llama.cpp ties none
    "model.norm.weight": ("output_norm.weight",),
}
_INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "attention_layernorm": "attn_norm",
    "feedforward_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_XIELU = ("alpha_n", "alpha_p", "beta", "eps")


def unavailable() -> str | None:
    """Return why the engine cannot run here, None when it can."""
    folder = os.environ.get(_FOLDER, "")
    if shutil.which("node") and folder and (Path(folder) / "node_modules/node-llama-cpp").is_dir():
        return None
    return f"node-llama-cpp is not installed in the folder that {_FOLDER} names"


class LlamaCpp:
    """A process that holds the model.

    Args:
        file: the model, GGUF.
        threads: number of threads.
    """

    def __init__(self, file: Path, threads: int) -> None:
        command = ["node", _SERVER, file, threads, _MOST_TEXTS, _CONTEXT]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.environ[_FOLDER],
        )
        self._answer()

    @classmethod
    def load(cls, path: Path, threads: int) -> LlamaCpp:
        """Load a checkpoint, which is written as GGUF beside it on first use."""
        return cls(as_gguf(path), threads)

    def logits(self, text: Sequence[int]) -> np.ndarray:
        """See Decoder."""
        pairs = self._ask(call="logits", text=list(text))["logits"]
        found = np.full(1 + max(token for token, _ in pairs), np.nan, np.float32)
        for token, value in pairs:
            found[token] = value
        return found

    def prefill(self, texts: Sequence[Sequence[int]]) -> Callable[[], object]:
        """See Decoder."""
        return lambda: self._ask(call="prefill", texts=texts)

    def decode(self, texts: Sequence[Sequence[int]], steps: int) -> Callable[[], object]:
        """See Decoder."""
        state: dict[str, bool] = {}

        def run() -> object:
            if not state:  # in the first call, which is not timed: the process has one state
                self._ask(call="read", texts=texts)
                state["read"] = True
            return self._ask(call="decode", texts=len(texts), start=len(texts[0]), steps=steps)

        return run

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with status {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")
        return answer


def as_gguf(path: Path) -> Path:
    """Write an Apertus checkpoint with 8-bit weights, and return the file."""
    import gguf
    from safetensors.torch import load_file

    target = path.with_suffix(".q8_0.gguf")
    if target.is_file():
        return target
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(path / "model.safetensors")
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "apertus")
    layers = config["num_hidden_layers"]
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for name in _XIELU:
        keys = (f"model.layers.{i}.mlp.act_fn.{name}" for i in range(layers))
        getattr(writer, f"add_xielu_{name}")([float(tensors[key]) for key in keys])
    _add_tokens(writer, config["vocab_size"])
    for name, tensor in tensors.items():
        _add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
    return target


def _add_tokens(writer: Any, count: int) -> None:
    """Add a vocabulary of no meaning: the engine does not load without one."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{index}" for index in range(count)])
    writer.add_token_types([1] * count)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add(writer: Any, name: str, tensor: torch.Tensor) -> None:
    """Add a tensor under the name that llama.cpp knows; matrices in 8 bits."""
    import gguf

    values = tensor.float().numpy()
    if name in _OUTER:
        known = _OUTER[name]
    elif name.startswith("model.layers.") and ".act_fn." not in name:
        _, _, layer, inner = name.split(".", 3)
        known = (f"blk.{layer}.{_INNER[inner.removesuffix('.weight')]}.weight",)
    else:
        return  # the parameters of xIELU are metadata; a tied head is the table of tokens
    kind = None
    if values.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        values = gguf.quants.quantize(values, kind)
    for file_name in known:
        writer.add_tensor(file_name, values, raw_dtype=kind)
