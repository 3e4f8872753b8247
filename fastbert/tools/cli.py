"""The ``fastbert`` command.

Errors are one sentence on standard error. Exit status: 0 all went well; 1 some lines could not be
answered, or `verify` found a miss; 2 an error, or wrong words; 128 and the number of the signal
that ended the command. All text is UTF-8, whatever the locale.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastbert import __version__
from fastbert.tools.lines import Problems, answered, blocks, opened_input
from fastbert.tools.output import Output, check_apart, opened_output
from fastbert.tools.stopping import Stopped, stoppable
from fastbert.tools.threads import thread_count

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
    "zero-shot-image-classification",
)
# What a user's input can cause. Anything else is a defect of fastbert and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError, RuntimeError, KeyError)
ERROR_STATUS = 2
BAD_LINES_STATUS = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of this process by default.

    Returns:
        The exit status.
    """
    _prepare_streams()
    options = _parsed(_parser(), arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        if sys.stdout is None and getattr(options, "output", None) in (None, "-"):
            raise ValueError("Standard output is closed, so there is nowhere to write to.")
        with stoppable():
            return command(options)
    except BrokenPipeError:
        # Whoever read the answers (head, say) has had enough.
        _drop_output()
        return 0
    except KeyboardInterrupt:
        print("fastbert: interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped:
        return stopped.status
    except MemoryError:
        print(
            "fastbert: there is too little memory; see ulimit -v and the model's size.",
            file=sys.stderr,
        )
        return ERROR_STATUS
    except USER_ERRORS as error:
        print(f"fastbert: {_sentence(error)}", file=sys.stderr)
        _drop_output()
        return ERROR_STATUS


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the words; argparse alone finds the file beside the model, not behind options."""
    options, rest = parser.parse_known_args(arguments)
    if getattr(options, "file", "") is None:
        behind = len(rest) == 1 and (rest[0] == "-" or not rest[0].startswith("-"))
        options.file = rest.pop() if behind else "-"
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _prepare_streams() -> None:
    """Let text be UTF-8, and keep the three standard descriptors from standing for other files."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _drop_output() -> None:
    """Drop what standard output cannot take; Python would try once more at exit, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "writing" if error.filename is None else error.filename
        return f"{where}: {error.strerror}."
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
    _stream_options(embed)
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

    rank = commands.add_parser("rank", help="the score of every pair of texts, by a CrossEncoder")
    _model_options(rank)
    _stream_options(rank, lines="query, tab, passage a line, or JSON; - is standard input")
    rank.add_argument(
        "--query", type=_text, metavar="TEXT", help="one query for all lines, which are passages"
    )
    rank.add_argument(
        "--top-k", type=_positive, metavar="N", help="the N best passages of --query, best first"
    )
    rank.set_defaults(command=_rank)

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

    run = commands.add_parser("run", help="a pipeline over lines of text")
    run.add_argument("--task", required=True, choices=TASKS)
    run.add_argument("--model", required=True, metavar="PATH")
    _compute_options(run)
    run.add_argument("--top-k", type=_positive, metavar="N", help="answers for each input")
    run.add_argument("--labels", metavar="A,B,C", help="candidates of the zero-shot tasks")
    run.add_argument(
        "--truncate", action="store_true", help="cut lines that are too long for the model"
    )
    _stream_options(run)
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


def _text(text: str) -> str:
    """Read a text; bytes that are not UTF-8 would make half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("it is not UTF-8 text") from error
    return text


def _model_options(parser: argparse.ArgumentParser, backend: bool = True) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder, or a hub id")
    _compute_options(parser, backend)


def _stream_options(
    parser: argparse.ArgumentParser, lines: str = "one text a line; - is standard input"
) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help=lines)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="replaced once all is done; default: standard output"
    )


def _compute_options(parser: argparse.ArgumentParser, backend: bool = True) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    parser.add_argument("--quantization", choices=("int8",))
    parser.add_argument("--threads", type=thread_count, metavar="N", help="default: torch's own")
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


@contextmanager
def _streams(source: str, target: str | None) -> Iterator[tuple[int, Output]]:
    """Open what is read and what is written, which must not be added to one another."""
    with opened_input(source) as descriptor, opened_output(target) as output:
        check_apart(descriptor, output)
        yield descriptor, output


def _env(options: argparse.Namespace) -> int:
    from fastbert.tools import env

    report = env.collect()
    print(env.render_json(report) if options.json else env.render(report))
    return 0


def _embed(options: argparse.Namespace) -> int:
    from fastbert.tools import embed as embedding

    output = None if options.output == "-" else options.output
    terminal = output is None and sys.stdout.isatty()
    form = embedding.output_format(output, options.format, terminal)
    problems = Problems()
    with _streams(options.file, output) as (source, target):
        from fastbert.embedding.sentence import SentenceEncoder

        encoder = SentenceEncoder.from_pretrained(options.model, **_loading(options))
        if options.device:
            from fastbert.runtime.devices import as_device

            encoder.to(as_device(options.device))
        if options.normalize is False:
            embedding.leave_lengths(encoder)
        arguments: dict[str, Any] = {"normalize_embeddings": options.normalize}
        if options.max_tokens:
            arguments["max_tokens"] = options.max_tokens
        lines = blocks(source, embedding.BLOCK_TEXTS)
        vectors = embedding.vectors_of(encoder, lines, problems, options.progress, **arguments)
        embedding.write(vectors, encoder.dimension, target, form, problems)
    return _status(problems)


def _rank(options: argparse.Namespace) -> int:
    if options.top_k and options.query is None:
        raise ValueError("--top-k ranks the passages of one query; name it with --query.")
    problems = Problems()
    with _streams(options.file, options.output) as (source, target):
        from fastbert.embedding.cross_encoder import CrossEncoder
        from fastbert.tools import rank
        from fastbert.tools.untrained import untrained_refused

        loading = _loading(options)
        if options.device:
            loading["device"] = options.device
        with untrained_refused():
            encoder = CrossEncoder.from_pretrained(options.model, **loading)
        if options.top_k and encoder.num_labels != 1:
            raise ValueError(
                f"--top-k needs a model with one score a pair, but this one has "
                f"{encoder.num_labels} labels."
            )
        score = rank.scoring(encoder, options.query)
        scored = rank.all_scored(blocks(source, rank.BLOCK_LINES), score, problems)
        rank.write(scored, options.top_k, target, problems)
    return _status(problems)


def _status(problems: Problems) -> int:
    return BAD_LINES_STATUS if problems.count else 0


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


def _continue(
    options: argparse.Namespace,
    labels: list[str] | None,
    problems: Problems,
    source: int,
    target: Output,
    loading: dict[str, Any],
) -> int:
    """Write every line and what follows it, as it is generated."""
    from fastbert.tools.generate import continuing

    answer = continuing(options.model, options.top_k, labels, target.write, **loading)
    count = sum(len(answered(lines, answer, problems)) for lines in blocks(source, 1))
    target.discarded = not count and problems.count > 0
    return _status(problems)


def _labels(text: str | None) -> list[str] | None:
    """Read the names between commas; blanks around them are no part of them, as in Python."""
    names = [name for part in (text or "").split(",") if (name := part.strip())]
    return names or None


def _run(options: argparse.Namespace) -> int:
    labels = _labels(options.labels)
    problems = Problems()
    with _streams(options.file, options.output) as (source, target):
        from fastbert.tools import run

        loading = _loading(options)
        if options.device:
            loading["device"] = options.device
        if options.task == "text-generation":
            return _continue(options, labels, problems, source, target, loading)
        answer = run.answering(
            options.task, options.model, options.top_k, labels, options.truncate, **loading
        )
        count = 0
        for lines in blocks(source, run.BLOCK_LINES):
            found = answered(lines, answer, problems)
            target.write("".join(f"{line}\n" for line in found).encode())
            count += len(found)
        target.discarded = not count and problems.count > 0
    return _status(problems)
