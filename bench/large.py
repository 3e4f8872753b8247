"""Memory and speed of a decoder that a machine holds in 8 bits alone: ``python -m bench.large``.

    python -m bench.large [--shape apertus-8b] [--threads 2] [--steps 16] [--keep]

Writes a checkpoint of random bfloat16 weights, tensor by tensor and in shards (16.1 GB for the
shape of the published 8B, removed in the end), and loads it in a process of its own with
``quantization="int8"``. Prints the seconds of loading and of the first pass, which packs the
weights, the memory of the process at its highest and afterwards, and tokens a second beside the
time to read the weights once. No speed is printed where the logits of a prompt are not those of the
reference path.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.decoders import SHAPES, DecoderShape
from bench.gate import TOLERANCES
from bench.models import CACHE
from bench.packing import memory_bytes
from fastbert.tools import peak
from fastbert.tools.threads import thread_count

LARGE = {
    shape.name: shape
    for shape in (
        # The published one.
        DecoderShape("apertus-8b", 32, 4096, 21504, 32, 8),
        DecoderShape("apertus-4b", 24, 3072, 16128, 24, 8),
        SHAPES["apertus-tiny"],
    )
}
_SHARD = 2 << 30
_PROMPT = 8


@dataclass(frozen=True)
class Large:
    """What loading and running one model took.

    Attributes:
        load, first_pass: seconds.
        loaded, peak, kept: bytes of the process: at its highest while it loaded, at its highest of
            all until the first pass was over, and at the end.
        error: of the logits of a prompt, relative, to those of the reference path.
        step: seconds of a token; the median.
        bound: seconds to read the weights once, the mean of before and after the steps; None where
            the machine's bandwidth is not known.
    """

    load: float
    first_pass: float
    loaded: int
    peak: int
    kept: int
    error: float
    step: float
    bound: float | None


def write_checkpoint(shape: DecoderShape, folder: Path, shard: int = _SHARD) -> int:
    """Write a checkpoint of random weights without holding more than a shard of it.

    Args:
        shape: of the model.
        folder: made here; what stands there is removed.
        shard: bytes of a file, at least.

    Returns:
        The bytes of all weights.
    """
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    size = total = files = 0
    for name, value in _weights(shape):
        held[name] = value
        size += value.nbytes
        total += value.nbytes
        places[name] = f"model-{files:05d}.safetensors"
        if size >= shard:
            save_file(held, folder / places[name], metadata={"format": "pt"})
            print(f"\rwritten: {total / 1e9:.1f} GB", end="", file=sys.stderr, flush=True)
            held, size, files = {}, 0, files + 1
    if held:
        save_file(held, folder / places[name], metadata={"format": "pt"})
    print(f"\rwritten: {total / 1e9:.1f} GB", file=sys.stderr, flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _config(shape).save_pretrained(folder)
    return total


def _config(shape: DecoderShape) -> Any:
    import transformers

    return transformers.ApertusConfig(
        architectures=["ApertusForCausalLM"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )


def _weights(shape: DecoderShape) -> Iterator[tuple[str, Tensor]]:
    """Make the weights one by one: products keep the size of what they are given."""
    import transformers

    config = _config(shape)
    with torch.device("meta"):
        empty = transformers.ApertusForCausalLM(config).state_dict()
    # Slopes of xIELU are what transformers begins with, in any size.
    small = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 1, "num_key_value_heads": 1, "pad_token_id": 0}
    begun = transformers.ApertusForCausalLM(transformers.ApertusConfig(**small)).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, like in empty.items():
        value = torch.empty(like.shape, dtype=torch.bfloat16)
        if like.dim() == 2:
            share = 0.5 if "down_proj" in name else 1.0  # xIELU squares what it gets
            value.normal_(0.0, share / math.sqrt(like.shape[1]), generator=generator)
        elif name.endswith("norm.weight"):
            value.normal_(1.0, 0.1, generator=generator)
        else:
            layer = name.removeprefix("model.layers.").partition(".")[2]
            value.copy_(begun[f"model.layers.0.{layer}"])
        yield name, value


def measure(folder: Path, shape: DecoderShape, threads: int, steps: int) -> Large:
    """Load and run a checkpoint in a process of its own.

    Raises:
        RuntimeError: where the process fails.
    """
    given = [str(folder), shape.name, str(threads), str(steps)]
    command = [sys.executable, "-m", "bench.large", "--child", *given]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(f"Running {shape.name} failed with status {done.returncode}.")
    return Large(**json.loads(done.stdout.splitlines()[-1]))


@torch.inference_mode()
def _measure_here(folder: str, shape: DecoderShape, threads: int, steps: int) -> Large:
    import fastbert

    torch.set_num_threads(threads)
    begin = time.perf_counter()
    model = fastbert.ApertusForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization="int8"
    ).eval()
    load, loaded = time.perf_counter() - begin, memory_bytes("VmHWM")
    ids = torch.randint(
        4, shape.vocabulary, (1, _PROMPT), generator=torch.Generator().manual_seed(1)
    )
    begin = time.perf_counter()
    out = model(ids, use_cache=True)
    first_pass, highest = time.perf_counter() - begin, memory_bytes("VmHWM")
    cache, token, times = out.past_key_values, ids[:, :1], []
    bounds = [_reading(shape, threads)]
    for _ in range(steps):
        begin = time.perf_counter()
        model(token, past_key_values=cache)
        times.append(time.perf_counter() - begin)
    kept = memory_bytes("VmRSS")
    bounds.append(_reading(shape, threads))
    model.refresh()  # the reference needs the packed weights' memory
    gc.collect()
    model.set_backend("reference")
    exact = model(ids).logits.double()
    error = float((out.logits.double() - exact).norm() / exact.norm())
    known = [bound for bound in bounds if bound is not None]
    bound = statistics.mean(known) if known else None
    return Large(load, first_pass, loaded, highest, kept, error, statistics.median(times), bound)


def _reading(shape: DecoderShape, threads: int) -> float | None:
    """Return the seconds to read all weights of a step once, at the bandwidth of this minute."""
    return peak.measure(threads).lower_bound("int8", 0.0, float(shape.weights))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 where the model did not pass the gate.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--shape", choices=LARGE, default="apertus-8b")
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument("--steps", type=int, default=16, help="tokens that a text is continued by")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint's folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        folder, name, threads, steps = options.child
        found = _measure_here(folder, LARGE[name], int(threads), int(steps))
        print(json.dumps(asdict(found)))
        return 0
    shape, path = LARGE[options.shape], CACHE / f"large-{options.shape}"
    try:
        size = write_checkpoint(shape, path)
        found = measure(path, shape, options.threads, options.steps)
    finally:
        if not options.keep:
            shutil.rmtree(path, ignore_errors=True)
    print(f"{shape.name}, int8: {size / 2**30:.2f} GiB of bfloat16 in the files")
    print(f"  loading      {found.load:8.1f} s, memory at its highest {_gib(found.loaded)}")
    print(f"  first pass   {found.first_pass:8.1f} s, memory at its highest {_gib(found.peak)}")
    print(f"  then                     memory {_gib(found.kept)}")
    print(f"  error        {found.error:8.1e} of the reference path's logits")
    if not found.error <= TOLERANCES["int8"]:
        print("  gate: red, so no speed is printed")
        return 1
    share = "" if found.bound is None else f", {found.bound / found.step:.0%} of reading once"
    print(f"  a token      {found.step * 1e3:8.1f} ms, {1 / found.step:.1f} tokens/s{share}")
    return 0


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
