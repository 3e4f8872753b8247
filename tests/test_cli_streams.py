"""Commands over streams: one bad line ends nothing, and no output is destroyed.

Guarded are the reader of lines (ends, bytes, limits, waiting), the answers to a block with bad
lines, and what an output's name stands for. Most run in this process; what belongs to a process as
a whole (closed descriptors, signals, locale) shares a few of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbert
from fastbert.tools import cli, embed, lines, output, run

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.append(str(Path(__file__).parent))

import small_models

MASKED = "Paris is the [MASK] of France."
# Good and bad lines of fill-mask; 3, 5, 6 and 7 are bad.
MIXED = [
    b"\xef\xbb\xbfParis is the [MASK] of France.\r\n",
    b"a\rlone return and a [MASK]\n",
    b"no mask here\n",
    b"nul \0 and [MASK]\r\r\n",
    b"tr\xe8s [MASK]\n",
    b"\n",
    b"[MASK] " + b"word " * 300 + b"\n",
    "é\u2028\x85\x0b\x0c [MASK] 東京".encode(),
]
BAD = {3, 5, 6, 7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    return small_models.bert(tmp_path_factory.mktemp("small"), **sizes)


def named(errors: str) -> set[int]:
    """The numbers of the lines that standard error names."""
    told = [line for line in errors.splitlines() if line.startswith("fastbert: line ")]
    return {int(line.split("line ")[1].split(":")[0]) for line in told}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_all(content: bytes, most: int = 100) -> list[lines.Line]:
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: (_write(writing, content), os.close(writing)))
    thread.start()
    try:
        return [line for block in lines.blocks(reading, most) for line in block]
    finally:
        thread.join()
        os.close(reading)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\r\nb\rc\n\r\nd\r", ["a", "b\rc", "", "d\r"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"x" * 70000 + b"\n" + b"y" * 140000, ["x" * 70000, "y" * 140000]),
    ],
)
def test_a_line_ends_at_lf_or_crlf_only(content: bytes, texts: list[str]) -> None:
    found = read_all(content)
    assert [line.text for line in found] == texts
    assert [line.number for line in found] == list(range(1, len(texts) + 1))


def test_too_long_a_line_is_named_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_BYTES", 1000)
    found = read_all(b"a\n" + b"x" * 300_000 + b"\nb\n" + b"y" * 1001)
    assert [line.text for line in found] == ["a", "", "b", ""]
    assert [bool(line.problem) for line in found] == [False, True, False, True]


def test_lines_of_a_pipe_are_not_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    source = lines.blocks(reading, 3)
    os.write(writing, b"1\n2\n3\n4\nhalf")
    assert [[line.text for line in next(source)] for _ in range(2)] == [["1", "2", "3"], ["4"]]
    thread = threading.Timer(0.1, lambda: (os.write(writing, b" more\n"), os.close(writing)))
    thread.start()
    assert [line.text for line in next(source)] == ["half more"]
    assert list(source) == []
    thread.join()
    os.close(reading)


def test_bad_lines_are_named_and_good_ones_answered_in_order(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mixed.txt"
    source.write_bytes(b"".join(MIXED))
    command = ["run", "--task", "fill-mask", "--model", str(checkpoint), str(source)]
    assert cli.main([*command, "--top-k", "1"]) == 1
    told = capfd.readouterr()
    assert named(told.err) == BAD
    pipe = fastbert.pipeline("fill-mask", model=str(checkpoint), top_k=1)
    good = [line for number, line in enumerate(MIXED, 1) if number not in BAD]
    texts = [line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r") for line in good]
    assert [json.loads(line) for line in told.out.splitlines()] == [pipe(text) for text in texts]
    assert cli.main([*command, "--top-k", "1", "--truncate"]) == 1
    told = capfd.readouterr()
    assert named(told.err) == BAD - {7} and len(told.out.split("\n")) == 6


def test_embed_leaves_bad_lines_out(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "mixed.txt", tmp_path / "out.npy"
    source.write_bytes(b"".join(MIXED))
    assert cli.main(["embed", str(checkpoint), str(source), "-o", str(target)]) == 1
    assert named(capfd.readouterr().err) == {5}
    texts = [b"".join(MIXED).split(b"\n")[i].removesuffix(b"\r") for i in (0, 1, 2, 3, 5, 6, 7)]
    encoder = fastbert.SentenceEncoder.from_pretrained(checkpoint)
    expected = encoder.encode([text.decode("utf-8-sig") for text in texts])
    np.testing.assert_array_equal(np.load(target), expected)


@pytest.mark.parametrize("command", [["embed"], ["run", "--task", "fill-mask", "--model"]])
def test_answers_are_not_added_to_the_file_that_is_read(
    command: list[str], checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.write_text(f"{MASKED}\n" * 3)
    with texts.open("ab") as added:
        where = ["-o", f"/dev/fd/{added.fileno()}"]
        assert cli.main([*command, str(checkpoint), str(texts), *where]) == 2
    assert "end would never be reached" in capfd.readouterr().err
    assert texts.read_text() == f"{MASKED}\n" * 3
    # As a name it is replaced, once all is read.
    assert cli.main([*command, str(checkpoint), str(texts), "-o", str(texts)]) == 0
    assert len([json.loads(line) for line in texts.read_text().splitlines()]) == 3


@pytest.mark.parametrize(
    "command",
    [
        ["embed"],
        ["embed", "--format", "npy"],
        ["run", "--task", "fill-mask", "--model"],
        ["run", "--task", "feature-extraction", "--model"],
    ],
)
def test_what_is_no_finite_number_is_no_answer(
    command: list[str], checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = fastbert.BertForMaskedLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight[12] = float("nan")
    model.save_pretrained(tmp_path / "model")
    for name in small_models.TOKENIZER_FILES:
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "in").write_text(f"{MASKED}\n{MASKED} It is a very large town.\n{MASKED}\n")
    out = tmp_path / "out"
    where = [str(tmp_path / "model"), str(tmp_path / "in"), "-o", str(out)]
    assert cli.main([*command, *where]) == 1
    told = capfd.readouterr().err
    assert named(told) == {2} and "no finite number" in told
    if "npy" in command:
        assert np.load(out).shape == (2, 32) and np.isfinite(np.load(out)).all()
    else:
        assert "NaN" not in out.read_text() and len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("task", "labels"), [("token-classification", None), ("zero-shot-classification", "x,y")]
)
def test_no_task_cuts_a_line_without_being_told(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], task: str, labels: str
) -> None:
    head = "TokenClassification" if labels is None else "SequenceClassification"
    config = fastbert.AutoConfig.from_pretrained(
        checkpoint, id2label={0: "O", 1: "entailment"}, label2id={"O": 0, "entailment": 1}
    )
    model = getattr(fastbert, f"BertFor{head}")(config)
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    source = tmp_path / "long.txt"
    source.write_text("short\n" + "word " * 300)
    command = ["run", "--task", task, "--model", str(tmp_path / "model"), str(source)]
    command += [] if labels is None else ["--labels", labels]
    assert cli.main(command) == 1
    told = capfd.readouterr()
    assert named(told.err) == {2} and len(told.out.splitlines()) == 1 and "--truncate" in told.err
    assert cli.main([*command, "--truncate"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2


def written(name: str | Path, content: bytes = b"new") -> None:
    with output.opened_output(str(name)) as target:
        target.write(content)


def test_a_file_is_replaced_through_links_with_its_mode_and_owner(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "out", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("middle")
    (tmp_path / "middle").symlink_to(target)
    before = target.stat()
    with output.opened_output(str(link)) as opened:
        opened.write(b"new")
        assert target.read_bytes() == b"old"
        assert os.access(tmp_path / "real", os.W_OK)
    assert link.is_symlink() and target.read_bytes() == b"new"
    after = target.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    if os.geteuid() == 0:
        os.chown(target, 12345, 54321)
        written(link)
        assert (target.stat().st_uid, target.stat().st_gid) == (12345, 54321)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "real" / "made")
    written(dangling)
    assert dangling.is_symlink() and (tmp_path / "real" / "made").read_bytes() == b"new"
    assert names(tmp_path / "real") == ["made", "out"]


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        written(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_file_of_several_names_keeps_them(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"something longer")
    (tmp_path / "other").hardlink_to(target)
    written(target)
    assert (tmp_path / "other").read_bytes() == b"new"
    assert len(names(tmp_path)) == 2


def test_devices_pipes_and_descriptors_are_written_to_as_what_they_are(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    written("/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    written(link)
    assert link.is_symlink() and stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        written("/dev/full")

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
    reader.start()
    written(fifo)
    reader.join()
    assert found == [b"new"] and stat.S_ISFIFO(fifo.stat().st_mode)

    appended = tmp_path / "log"
    appended.write_bytes(b"before ")
    with appended.open("ab") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            written(name)
    assert appended.read_bytes() == b"before newnew"
    written("/dev/stdout")
    written("-")
    assert capfdbinary.readouterr().out == b"newnew"


def test_what_cannot_be_written_is_refused_and_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        written(tmp_path / "no" / "out")
    for name in (str(tmp_path), f"{tmp_path}/new/", ""):
        with pytest.raises(IsADirectoryError):
            written(name)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        written(loop)
    with pytest.raises(PermissionError, match="Nothing can be written into /proc"):
        written("/proc/out")
    old = tmp_path / "old"
    old.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), output.opened_output(str(old)) as target:
        target.write(b"half")
        raise ZeroDivisionError
    with output.opened_output(str(old)) as target:
        target.discarded = True
    assert old.read_bytes() == b"old" and len(names(tmp_path)) == 2


def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"old")
    old.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may always write
    with pytest.raises(PermissionError, match="may not be written"):
        written(old)
    monkeypatch.undo()
    # Where the owner may not be given to a new file, the former one is written to.
    old.chmod(0o644)

    def refused(*arguments: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    inode = old.stat().st_ino
    written(old, b"n")
    assert old.read_bytes() == b"n" and old.stat().st_ino == inode


def test_nothing_good_replaces_nothing(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out.jsonl"
    source.write_bytes(b"no mask\n\xff\n")
    target.write_bytes(b"old")
    common = ["--model", str(checkpoint), str(source), "-o", str(target)]
    assert cli.main(["run", "--task", "fill-mask", *common]) == 1
    assert named(capfd.readouterr().err) == {1, 2} and target.read_bytes() == b"old"
    source.write_bytes(b"")
    assert cli.main(["run", "--task", "fill-mask", *common]) == 0
    assert target.read_bytes() == b"" and len(names(tmp_path)) == 2


def test_npy_streams_into_a_pipe(checkpoint: Path, tmp_path: Path) -> None:
    source, fifo = tmp_path / "in", tmp_path / "fifo"
    source.write_text("one\ntwo\n")
    os.mkfifo(fifo)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
    reader.start()
    command = ["embed", str(checkpoint), str(source), "-o", str(fifo), "--format", "npy"]
    assert cli.main(command) == 0
    reader.join()
    (tmp_path / "out.npy").write_bytes(found[0])
    encoder = fastbert.SentenceEncoder.from_pretrained(checkpoint)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), encoder.encode(["one", "two"]))


def test_heads_of_npy_are_as_long_for_any_number_of_rows() -> None:
    lengths = {len(embed._npy_head(rows, 384)) for rows in (0, 9, 10**6, 10**12)}
    assert len(lengths) == 1


@pytest.mark.parametrize("count", ["0", "-1", "x", "100000", "99999999999999999999"])
def test_threads_have_a_bound(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["embed", "m"], ["verify", "m"], ["bench", "m"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command, "--threads", count])
        assert stopped.value.code == 2
        assert "threads from 1 to" in capsys.readouterr().err


# What belongs to a process as a whole.


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    root = str(Path(fastbert.__file__).parents[1])
    command = {"F": f"{sys.executable} -m fastbert", "PYTHONPATH": root}
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        env={**os.environ, **command, **variables},
        timeout=120,
    )


def test_descriptors_that_are_closed_and_other_locales(checkpoint: Path, tmp_path: Path) -> None:
    model = shlex.quote(str(checkpoint))
    fill = f"$F run --task fill-mask --top-k 1 --model {model}"
    (tmp_path / "é.txt").write_text(f"{MASKED} été 東京\n" * 3, encoding="utf-8")
    script = f"""
        cd {shlex.quote(str(tmp_path))}
        {fill} <&- ; echo "closed-in $?"
        {fill} é.txt >&- ; echo "closed-out $?"
        {fill} nothing.txt 2>&- ; echo "closed-err $?"
        {fill} é.txt | head -n 1 ; echo "head ${{PIPESTATUS[0]}}"
        {fill} é.txt > /dev/full ; echo "full $?"
    """
    done = shell(script, LC_ALL="C", PYTHONIOENCODING="latin-1", PYTHONCOERCECLOCALE="0")
    told = done.stdout.decode()
    for line in ("closed-in 2", "closed-out 2", "closed-err 2", "head 0", "full 2"):
        assert line in told.splitlines(), (told, done.stderr.decode())
    answer = json.loads(told.splitlines()[3])
    assert "ete 東 京" in answer[0]["sequence"] and "東 京" in told
    errors = done.stderr.decode().splitlines()
    assert [line for line in errors if line.startswith("fastbert")] == errors, errors
    assert len(errors) == 3
    assert names(tmp_path) == ["é.txt"]


def test_a_signal_leaves_the_former_file_and_no_scraps(checkpoint: Path, tmp_path: Path) -> None:
    """Two commands, each of which has answered its first line and waits for the next."""
    started = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        folder.mkdir()
        (folder / "out").write_bytes(b"old")
        command = [sys.executable, "-m", "fastbert", "run", "--task", "fill-mask"]
        started[number] = subprocess.Popen(
            [*command, "--model", str(checkpoint), "-o", str(folder / "out")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A suite that runs in the background of a shell has its children ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    for number, process in started.items():
        folder = tmp_path / number.name
        assert process.stdin is not None
        process.stdin.write(f"{MASKED}\n".encode())
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in folder.glob(".fastbert-*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (128 + number, -number)
        assert b"Traceback" not in errors
        assert names(folder) == ["out"] and (folder / "out").read_bytes() == b"old"


def test_the_file_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli._parser()
    for words, file in (
        (["embed", "m", "texts"], "texts"),
        (["embed", "m", "--normalize", "-o", "out", "texts"], "texts"),
        (["embed", "--normalize", "m", "-o", "out", "texts"], "texts"),
        (["embed", "m", "-o", "out"], "-"),
        (["embed", "m", "-o", "out", "-"], "-"),
        (["run", "--task", "fill-mask", "texts", "--model", "m"], "texts"),
    ):
        assert cli._parsed(parser, words).file == file
    for words in (
        ["embed", "m", "texts", "-o", "out", "more"],
        ["embed", "m", "-", "-o", "out", "more"],
        ["embed", "m", "-o", "out", "texts", "more"],
        ["embed", "m", "--wrong"],
        ["verify", "m", "more"],
    ):
        with pytest.raises(SystemExit):
            cli._parsed(parser, words)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_blanks_are_no_part_of_labels() -> None:
    assert cli._labels("red, blue wine ,,green") == ["red", "blue wine", "green"]
    assert cli._labels(" , ") is None and cli._labels(None) is None


def test_an_empty_name_is_not_the_current_folder(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoint)
    assert cli.main(["embed", "", os.devnull]) == 2
    assert "name is empty" in capsys.readouterr().err
    assert cli.main(["embed", ".", os.devnull]) == 0


def test_too_little_memory_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "_embed", short)
    assert cli.main(["embed", "model"]) == 2
    assert "too little memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "task", ["token-classification", "question-answering", "text-classification"]
)
def test_a_head_without_weights_is_refused(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], task: str
) -> None:
    (tmp_path / "in").write_text("a\tb\n")
    command = ["--model", str(checkpoint), str(tmp_path / "in")]
    assert cli.main(["run", "--task", task, *command]) == 2
    told = capfd.readouterr()
    assert not told.out and "Answers would be random" in told.err
    assert cli.main(["run", "--task", "feature-extraction", *command]) == 0


def test_options_that_fit_no_line_are_no_bad_lines(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fastbert.AutoConfig.from_pretrained(checkpoint)
    fastbert.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    for name in small_models.TOKENIZER_FILES:
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    source = tmp_path / "in"
    source.write_text("x\n")
    command = ["run", "--task", "zero-shot-classification", "--labels", "a", str(source)]
    assert cli.main([*command, "--model", str(tmp_path / "model")]) == 2
    told = capsys.readouterr().err
    assert "entail" in told and not named(told)
    assert run.BLOCK_LINES > 1
