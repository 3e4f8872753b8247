"""The ``fastbert`` command. Errors are one sentence on standard error and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from fastbert import __version__

DTYPES = ("float32", "bfloat16", "float16")
BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
FORMATS = ("npy", "jsonl")
TASKS = (
    "feature-extraction",
    "fill-mask",
    "question-answering",
    "text-classification",
    "text-generation",
    "token-classification",
    "zero-shot-classification",
)
# What a user's input can cause. Anything else is a defect of fastbert and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError, RuntimeError, KeyError)
ERROR_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of this process by default.

    Returns:
        The exit status: 0, 1 when `verify` finds a miss, 2 for an error, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except BrokenPipeError:
        # The reader (head, say) has left. Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("fastbert: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        print(f"fastbert: {_sentence(error)}", file=sys.stderr)
        return ERROR_STATUS


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, KeyError):
        return f"the key {error} is missing from a file of this model."
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastbert",
        description="BERT-family encoders on hand-written kernels.",
    )
    parser.add_argument("--version", action="version", version=f"fastbert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    env = commands.add_parser("env", help="versions, CPU features, what was built, GPUs")
    env.add_argument("--json", action="store_true", help="one JSON object instead of text")
    env.set_defaults(command=_env)

    embed = commands.add_parser("embed", help="one vector for every line of text")
    _model_options(embed)
    embed.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="one text a line; - is standard input"
    )
    embed.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    embed.add_argument(
        "--format", choices=FORMATS, help="default: from the output's name, else jsonl"
    )
    embed.add_argument("--max-tokens", type=_positive, metavar="N", help="tokens in one pass")
    embed.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="scale vectors to length 1, or not; default: as the model says",
    )
    embed.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress on standard error; default: when that is a terminal",
    )
    embed.set_defaults(command=_embed)

    verify = commands.add_parser("verify", help="every backend against the reference path")
    _model_options(verify, backend=False)
    verify.set_defaults(command=_verify)

    bench = commands.add_parser("bench", help="times of a model on this machine")
    _model_options(bench, backend=False)
    bench.add_argument(
        "--profile", action="store_true", help="time per step beside its lower bound"
    )
    bench.add_argument("--repetitions", type=_positive, default=7, metavar="N")
    _alias(bench, "--repeats", "repetitions", type=_positive)
    bench.set_defaults(command=_bench)

    demo = commands.add_parser("demo", help="sample sentences through a real model, with figures")
    demo.add_argument(
        "model", nargs="?", metavar="MODEL", help="default: all-MiniLM-L6-v2 from its package"
    )
    demo.set_defaults(command=_demo)

    run = commands.add_parser("run", help="a pipeline over the lines of standard input")
    run.add_argument("--task", required=True, choices=TASKS)
    run.add_argument("--model", required=True, metavar="PATH")
    _compute_options(run)
    run.add_argument("--top-k", type=_positive, metavar="N", help="answers for each input")
    run.add_argument("--labels", metavar="A,B,C", help="candidates of zero-shot-classification")
    run.set_defaults(command=_run)
    return parser


def _alias(parser: argparse.ArgumentParser, name: str, of: str, **settings: Any) -> None:
    """Accept an earlier name of an option, which the help does not mention."""
    parser.add_argument(
        name, dest=of, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **settings
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


_positive.__name__ = "whole number of at least 1"


def _model_options(parser: argparse.ArgumentParser, backend: bool = True) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder, or a hub id")
    _compute_options(parser, backend)


def _compute_options(parser: argparse.ArgumentParser, backend: bool = True) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    parser.add_argument("--quantization", choices=("int8",))
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: torch's own")
    if backend:
        parser.add_argument("--backend", choices=BACKENDS, default="auto")
        parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...")


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments for from_pretrained, and set the number of threads."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    chosen: dict[str, Any] = {"quantization": options.quantization}
    if options.dtype:
        chosen["dtype"] = getattr(torch, options.dtype)
    if hasattr(options, "backend"):
        chosen["backend"] = options.backend
    return chosen


def _env(options: argparse.Namespace) -> int:
    from fastbert.tools import env

    report = env.collect()
    print(env.render_json(report) if options.json else env.render(report))
    return 0


def _embed(options: argparse.Namespace) -> int:
    from fastbert.tools import embed as embedding

    form = embedding.output_format(options.output, options.format, sys.stdout.isatty())
    with _input(options.file) as stream:
        from fastbert.embedding.sentence import SentenceEncoder

        encoder = SentenceEncoder.from_pretrained(options.model, **_loading(options))
        if options.device:
            from fastbert.runtime.devices import as_device

            encoder.to(as_device(options.device))
        arguments: dict[str, Any] = {"normalize_embeddings": options.normalize}
        if options.max_tokens:
            arguments["max_tokens"] = options.max_tokens
        embedding.write(
            embedding.vectors_of(encoder, _lines(stream), options.progress, **arguments),
            options.output,
            form,
        )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from fastbert.tools.verify import verify

    report = verify(options.model, **_loading(options))
    print(report)
    return 0 if report.passed else 1


def _bench(options: argparse.Namespace) -> int:
    from fastbert.tools.bench import bench
    from fastbert.tools.profile import profile

    measure = profile if options.profile else bench
    print(measure(options.model, repetitions=options.repetitions, **_loading(options)))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from fastbert.tools.demo import show

    return show(options.model)


def _run(options: argparse.Namespace) -> int:
    from fastbert.tools.run import answers

    labels = options.labels.split(",") if options.labels else None
    loading = _loading(options)
    if options.device:
        loading["device"] = options.device
    if options.task == "text-generation":
        from fastbert.tools.generate import continue_lines

        if labels is not None or options.top_k is not None:
            raise ValueError("--labels and --top-k mean nothing for text-generation.")
        with _input("-") as stream:
            show = partial(print, end="", flush=True)
            continue_lines(options.model, _lines(stream), show, **loading)
        return 0
    with _input("-") as stream:
        for line in answers(
            options.task, options.model, _lines(stream), options.top_k, labels, **loading
        ):
            print(line, flush=True)
    return 0


def _input(name: str) -> IO[str]:
    if name == "-":
        return open(sys.stdin.fileno(), encoding="utf-8", closefd=False)
    return Path(name).open(encoding="utf-8")


def _lines(stream: IO[str]) -> Iterator[str]:
    try:
        for line in stream:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{stream.name} is not UTF-8 text ({error.reason} at byte {error.start}); convert it "
            "to UTF-8 first."
        ) from error
