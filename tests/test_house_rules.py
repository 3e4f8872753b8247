"""The rules of the house that a machine can check; DESIGN numbers them 1 to 8."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastbert
from fastbert.engine.encoder_cache import ModelSnapshot
from fastbert.kernels import native
from fastbert.modeling.encoding import EncoderInputs
from fastbert.ops import ALL, REGISTRY
from fastbert.runtime.plan import Traits, build_plan

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE, TRITON = ROOT / "csrc", ROOT / "fastbert", ROOT / "triton_kernels"
needs_sources = pytest.mark.skipif(not CSRC.exists(), reason="run from a checkout")
pytestmark = needs_sources


def sources(*suffixes: str, under: Path = CSRC) -> Iterator[tuple[Path, str]]:
    for path in sorted(under.rglob("*")):
        if path.suffix in suffixes and "build" not in path.parts:
            yield path, path.read_text(encoding="utf-8")


def without_comments(code: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.DOTALL)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything a Python file imports, wherever in it."""
    package = package_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> tuple[str, ...]:
    """The package that a file's relative imports start from."""
    parts = path.relative_to(ROOT).parts[:-1]
    return ("fastbert", *parts) if parts and parts[0] == "triton_kernels" else parts


CPP = (".h", ".hpp", ".inl", ".cpp", ".cu", ".cuh")


# 1. Kernels know shapes, not models, and no framework.


def test_native_sources_include_no_torch() -> None:
    for path, code in sources(*CPP):
        for name in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', code):
            assert not re.match(r"(torch|ATen|c10|caffe2)/", name), f"{path} includes {name}"


def test_kernels_know_no_models() -> None:
    allowed = re.compile(r"layer_?norm|LayerNorm", re.IGNORECASE)
    places = [CSRC / "cpu" / "ops", CSRC / "cpu" / "vec", CSRC / "cuda", TRITON]
    places.append(PACKAGE / "ops")
    for place in places:
        for path, code in sources(*CPP, ".py", under=place):
            # The package's own name is no model.
            code = re.sub(r"fastbert", "", code, flags=re.IGNORECASE)
            code = allowed.sub("", code)
            for word in ("bert", "layer", "encoder", "decoder"):
                found = re.search(rf"\b\w*{word}\w*\b", without_comments(code), re.IGNORECASE)
                if path.suffix == ".py" and found:
                    # In Python, prose may say what callers do; code may not.
                    found = word_in_code(path, word)
                assert not found, f"{path} knows what a {word} is: {found}"


def word_in_code(path: Path, word: str) -> str | None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name")]
        for name in names:
            if isinstance(name, str):
                bare = re.sub("layer_?norm|fastbert", "", name, flags=re.IGNORECASE)
                if word in bare.lower():
                    return name
    return None


# 2. Imports run only downward.

# A room imports only from floors below its own, whatever the form of the import. Modules that stand
# in no room (errors, locks, outputs) are below all.
FLOORS = (
    ("ops", "checkpoints"),
    ("kernels", "testing", "tokenizers", "triton_kernels"),
    ("runtime", "processors"),
    ("layers",),
    ("engine", "generation"),
    ("modeling",),
    ("branches",),
    ("models",),
    ("embedding",),
    ("pipelines",),
    ("integrations",),
    ("tools",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms | {"triton_kernels"} == set(FLOOR_OF)


def test_imports_run_only_downward() -> None:
    upward = []
    for path in python_files():
        room = room_of(path)
        for module in imports_of(path):
            target = module.split(".")[1:2]
            if not module.startswith("fastbert.") or target == [room] or target[0] not in FLOOR_OF:
                continue
            if room is None:
                continue  # __init__ and __main__ open every door
            if FLOOR_OF[target[0]] >= FLOOR_OF[room]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward, "\n".join(upward)


def test_flat_modules_import_no_room() -> None:
    for name in ("errors", "locks", "outputs"):
        rooms = [module for module in imports_of(PACKAGE / f"{name}.py") if "fastbert" in module]
        assert not rooms, f"{name}.py imports {rooms}"


def room_of(path: Path) -> str | None:
    """The folder of the package that a file stands in, None for the top level."""
    if path.is_relative_to(TRITON):
        return "triton_kernels"
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_family_files_are_small() -> None:
    files = ("bert", "roberta", "xlm_roberta", "camembert", "flaubert", "rembert")
    for name in (*files, "distilbert", "electra", "mpnet"):
        path = PACKAGE / "models" / f"{name}.py"
        if path.exists():
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


# 3. What is true of an op stands in its file.


def test_an_op_is_one_file() -> None:
    for name, op in ALL.items():
        home = (PACKAGE / "ops" / f"{name}.py").resolve()
        assert home.exists()
        for part in (op.reference, op.check, op.fake, op.supports, op.cases):
            assert Path(inspect.getfile(part)).resolve() == home, f"{part} of {name}"
        assert op.mutations and op.schema and op.tolerances


@pytest.mark.parametrize("name", ALL)
def test_an_op_has_one_signature(name: str) -> None:
    """The schema is made of the reference's; what checks operands takes the same arguments."""
    op = ALL[name]
    reference = list(inspect.signature(op.reference).parameters.values())
    _, *checked = inspect.signature(op.check).parameters.values()
    assert checked == reference
    parsed = torch._C.parse_schema(name + op.schema)
    assert [argument.name for argument in parsed.arguments] == [p.name for p in reference]
    faked = inspect.signature(op.fake).parameters.values()
    named = {p.name for p in faked if p.kind is p.KEYWORD_ONLY}
    assert named <= set(op.parameters)
    assert len(named) == len([p for p in faked if p.kind is not p.VAR_KEYWORD])


@pytest.mark.parametrize("name", REGISTRY)
def test_every_backend_takes_the_operands(name: str) -> None:
    """One positional argument, whose type the op's file declares."""
    op = REGISTRY[name]
    operands = inspect.signature(op.check).return_annotation
    for home in (PACKAGE / "kernels" / "cpu.py", PACKAGE / "kernels" / "cuda", TRITON):
        path = home if home.suffix else home / f"{name}.py"
        if not path.exists():
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == name)
        assert [ast.unparse(a.annotation) for a in found.args.args if a.annotation] == [operands]


def test_every_op_says_what_it_takes() -> None:
    for name, op in ALL.items():
        assert "Returns:" in op.doc and "Args:" in op.doc, name


# 4. Nothing falls back silently.


def python_files() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))
    yield from sorted(TRITON.rglob("*.py"))


def test_no_error_is_swallowed() -> None:
    broad = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, f"{path}:{node.lineno} catches everything"
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            does = [s for s in node.body if not isinstance(s, ast.Pass)]
            assert does or not names & broad, f"{path}:{node.lineno} passes over {names & broad}"


def test_backends_are_chosen_in_one_place() -> None:
    allowed = {"runtime/plan.py", "tools/env.py"}
    for path in python_files():
        if room_of(path) in ("kernels", "testing") or path.is_relative_to(TRITON):
            continue
        if path.relative_to(PACKAGE).as_posix() in allowed:
            continue
        for name in imports_of(path):
            assert name != "fastbert.kernels.missing", f"{path} chooses a backend itself"


def test_no_environment_switch_chooses_a_backend() -> None:
    for path in python_files():
        code = path.read_text(encoding="utf-8")
        assert "FASTBERT_BACKEND" not in code, path


# 5. Words keep their meaning.


def test_eps_has_no_default_in_python() -> None:
    for path in python_files():
        if room_of(path) == "models" or path.name == "config.py":
            continue  # configuration classes have the defaults of the published formats
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                args = node.args
                plain = args.posonlyargs + args.args
                given = plain[len(plain) - len(args.defaults) :]
                keyword = [a for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d]
                for argument in given + keyword:
                    assert "eps" not in argument.arg.split("_"), f"{path}:{node.lineno}"


def test_eps_has_no_default_in_cpp() -> None:
    for path, code in sources(*CPP):
        code = without_comments(code)
        # A plain struct may start from 0, which its driver refuses or a caller means.
        for value in re.findall(r"\beps\s*=\s*([-+\w.]+)", code):
            constant = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?f?", value)
            assert not constant or float(value.rstrip("f")) == 0.0, f"{path}: eps = {value}"
        assert not re.search(r'arg\("eps"\)\s*=', code), f"{path} gives eps a default"


def test_eps_has_no_default_in_schemas() -> None:
    for op in ALL.values():
        assert "eps=" not in op.schema


def test_gelu_is_erf() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    from fastbert.ops.activations import KERNEL_ACTIVATIONS, activate

    torch.testing.assert_close(
        activate(x, "gelu"), x * 0.5 * (1 + torch.erf(x / 2**0.5)), rtol=1e-12, atol=1e-14
    )
    assert KERNEL_ACTIVATIONS["gelu"] != KERNEL_ACTIVATIONS["gelu_new"]


# 6. Statistics and accumulators are float32.


def build_files() -> list[Path]:
    named = [ROOT / name for name in ("CMakeLists.txt", "setup.py", "Makefile")]
    return [path for path in named if path.exists()] + sorted((ROOT / "cmake").glob("*.cmake"))


def test_no_fast_math() -> None:
    for path in build_files():
        code = re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"fast-?math|-Ofast|associative-math|use_fast_math", code), path
    assert any("-ffp-contract=off" in path.read_text(encoding="utf-8") for path in build_files())


def test_overflow_of_int32_is_written_down() -> None:
    """K up to 65 793 = floor((2^31 - 1) / (255 * 128)) cannot overflow; the kernel says so too."""
    assert (2**31 - 1) // (255 * 128) == 65793
    assert "65 793" in REGISTRY["int8_linear"].doc
    gemm = "".join(code for path, code in sources(*CPP) if "gemm" in path.name)
    assert re.search(r"65\s?'?79\d|overflow", gemm), "gemm sources state no bound"


# 7. Only csrc/cpu/isa/*.cpp have -m flags.


def test_instruction_set_flags_are_in_one_place() -> None:
    for path, code in sources(*CPP):
        inside = path.parent == CSRC / "cpu" / "isa"
        for bad in ("#pragma GCC target", "__attribute__((target(", "target_clones"):
            assert bad not in code, f"{path} sets its own target"
        if path.suffix == ".cpp" and not inside:
            found = re.search(r"#\s*include\s*<(immintrin|x86intrin|arm_neon)\.h>", code)
            assert not found, f"{path} uses intrinsics without flags"
    for name in ("setup.py", "Makefile"):
        path = ROOT / name
        if path.exists():
            flags = re.findall(r"-m(?:avx|fma|f16c|arch|tune|sse|amx)\S*", path.read_text())
            assert not flags, f"{name} has {flags}"
    for path in build_files():
        assert "march=native" not in path.read_text(encoding="utf-8"), path


def included_by(path: Path) -> set[Path]:
    """A source of csrc/cpu with all that it includes of csrc, to any depth."""
    found, left = set(), [path]
    while left:
        found.add(path := left.pop())
        code = without_comments(path.read_text(encoding="utf-8"))
        names = re.findall(r'#\s*include\s*"([^"]+)"', code)
        left += [CSRC / name for name in names if (CSRC / name).exists()]
        left = [path for path in left if path not in found]
    return found


def test_what_vnni_and_amx_share_with_avx512_has_neither() -> None:
    """cmake/isa.cmake compiles an op once for all, unless it multiplies matrices (vec/dot.h)."""
    build = (ROOT / "cmake" / "isa.cmake").read_text(encoding="utf-8")
    ops, products, tiles = (
        set(re.search(rf"set\(FASTBERT_{name} ([^)]*)\)", build)[1].split())  # type: ignore[index]
        for name in ("OPS", "PRODUCT_OPS", "TILE_OPS")
    )
    own = products | tiles
    vec = CSRC / "cpu" / "vec"

    def naming(macro: str) -> set[Path]:
        return {path for path, code in sources(*CPP) if macro in code}

    assert naming("__AVX512VNNI__") == {vec / "dot_avx512.h"}
    assert naming("__AMX_TILE__") == {
        vec / "tile_amx.h",
        *(CSRC / "cpu" / "ops" / f"{op}.inl" for op in own),
    }
    files = {op: included_by(CSRC / "cpu" / "ops" / f"{op}.inl") for op in ops}
    assert {op for op in ops if vec / "dot.h" in files[op]} == own


def test_flagged_files_are_short() -> None:
    files = list((CSRC / "cpu" / "isa").glob("*.cpp"))
    assert files
    for path in files:
        code = without_comments(path.read_text(encoding="utf-8"))
        assert len([line for line in code.splitlines() if line.strip()]) <= 25, path


def flagged_objects() -> list[Path]:
    found = (ROOT / "build").rglob("*.o")
    return [path for path in found if path.parent.name == "isa" and "san" not in str(path)]


def test_flagged_objects_leak_no_weak_symbols() -> None:
    """A weak symbol of a flagged file may win the link and run on a CPU without the flag."""
    nm = shutil.which("nm")
    objects = flagged_objects()
    if nm is None or not objects:
        pytest.skip("no object files here: `make native` leaves them")
    for path in objects:
        out = subprocess.run(
            [nm, "-C", "--defined-only", str(path)], capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr
        for line in out.stdout.splitlines():
            kind = line.split(maxsplit=2)[-2] if len(line.split()) > 2 else line.split()[0]
            # DW.ref: a pointer to the personality routine, no code.
            assert kind not in "WVu" or "DW.ref" in line, f"{path.name} exports weak {line}"


# 8. Few hops from layer to kernel.


def hops_to_native(run: Callable[[], object]) -> dict[str, int]:
    """Functions of fastbert._C that a call reaches, and how many calls lead there, each counted."""
    native_names = {name for name in dir(native.extension()) if not name.startswith("_")}
    found: dict[str, int] = {}
    depth = 0

    def profile(frame: object, event: str, function: Any) -> None:
        nonlocal depth
        depth += {"call": 1, "return": -1}.get(event, 0)
        if event == "c_call" and function.__name__ in native_names:
            found[function.__name__] = max(found.get(function.__name__, 0), depth + 1)

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
@pytest.mark.parametrize("name", REGISTRY)
def test_from_layer_to_kernel_are_four_hops(name: str) -> None:
    """Plan's entry, the op's function, what it shares with its siblings, the native call."""
    op = REGISTRY[name]
    plan = build_plan(Traits(), "cpu", torch.float32, "cpu")
    arguments = dict(next(iter(op.cases())).make(torch.float32))
    for weight in {"weight", "qweight"} & arguments.keys() if name.endswith("linear") else ():
        arguments["packed"] = plan.prepack(name, arguments[weight])
    function = functools.partial(getattr(plan, name), **arguments)
    with torch.no_grad():
        function()
        hops = hops_to_native(function)
    assert len(hops) == 1 and max(hops.values()) <= 4, hops


class Crossings:
    """Stands in the place of fastbert._C and counts what is called in it."""

    def __init__(self, module: Any) -> None:
        self.module, self.calls = module, []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return found(*args, **kwargs)

        return call

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count from now on."""
        monkeypatch.setattr(native, "extension", lambda: self)
        monkeypatch.setattr(native, "library", self)
        monkeypatch.setattr(
            ModelSnapshot, "holds", lambda *_: self.calls.append("Watch.unchanged") is None
        )


class CountedEncoder:
    """A native encoder whose calls are counted too."""

    def __init__(self, encoder: Any, calls: list[str]) -> None:
        self.encoder, self.calls = encoder, calls

    def __getattr__(self, name: str) -> Any:
        self.calls.append(f"Encoder.{name}")
        return getattr(self.encoder, name)


FAMILIES = {
    "bert": (fastbert.BertModel, fastbert.BertConfig),
    "roberta": (fastbert.RobertaModel, fastbert.RobertaConfig),
    "camembert": (fastbert.CamembertModel, fastbert.CamembertConfig),
    "rembert": (fastbert.RemBertModel, fastbert.RemBertConfig),
    "xlm-roberta": (fastbert.XLMRobertaModel, fastbert.XLMRobertaConfig),
    "distilbert": (fastbert.DistilBertModel, fastbert.DistilBertConfig),
    "electra": (fastbert.ElectraModel, fastbert.ElectraConfig),
    "align": (fastbert.AlignTextModel, fastbert.AlignTextConfig),
    "flaubert": (fastbert.FlaubertModel, fastbert.FlaubertConfig),
    "flaubert pre-norm": (fastbert.FlaubertModel, fastbert.FlaubertConfig),
}


def small(family: str) -> Any:
    model_class, config_class = FAMILIES[family]
    if family.startswith("flaubert"):
        sizes: dict[str, Any] = {"n_words": 60, "emb_dim": 24, "n_layers": 2, "n_heads": 2}
        sizes |= {"n_langs": 2, "use_lang_emb": True, "pre_norm": family.endswith("pre-norm")}
    else:
        sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "intermediate_size": 40}
    if family == "rembert":
        sizes["input_embedding_size"] = 16
    if family == "electra":
        sizes["embedding_size"] = 16
    if family == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    return model_class(config_class(**sizes)).eval()


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prepared_forward_crosses_once(
    family: str, given: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(family)
    ids = torch.randint(5, 60, (3, 7))
    inputs: dict[str, Any] = {"input_ids": ids}
    if given == "inputs_embeds":
        inputs = {given: model.get_input_embeddings()(ids).detach()}
    if masked:
        inputs["attention_mask"] = (torch.arange(7) < torch.tensor([[7], [1], [4]])).long()
    if family.startswith("flaubert"):
        inputs["langs"] = torch.randint(0, 2, (3, 7))
    counted = Crossings(native.extension())
    with torch.no_grad():
        expected = model(**inputs)[0]
        ready = model.encoder_cache._entry
        encoder = ready.encoder
        encoder._encoder = CountedEncoder(encoder._encoder, counted.calls)
        counted.watch(monkeypatch)
        out = model(**inputs)
    assert counted.calls == ["Encoder.run"]
    assert torch.equal(out[0], expected)


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_packed_encoding_crosses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SentenceEncoder asks for: packed rows."""
    model = small("bert")
    counted = Crossings(native.extension())
    inputs = {
        "input_ids": torch.randint(5, 60, (2, 6)),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool(),
    }
    with torch.inference_mode():
        assert model.encode(EncoderInputs(**inputs)).packed.shape == (9, 24)
        encoder = model.encoder_cache._entry.encoder
        encoder._encoder = CountedEncoder(encoder._encoder, counted.calls)
        counted.watch(monkeypatch)
        model.encode(EncoderInputs(**inputs))
    assert counted.calls == ["Encoder.run"]


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_a_classification_takes_few_calls() -> None:
    """Count the way from a classifier to its kernels; tests/trace_forward.py prints it."""
    spec = importlib.util.spec_from_file_location("trace_forward", ROOT / "tests/trace_forward.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trace_forward"] = module
    spec.loader.exec_module(module)
    trace = module.classification()
    assert len(trace.calls) < 90, trace.report()
    assert len(trace.files) <= 15, trace.report()
    assert len(trace.crossings) <= 3, trace.report()


def test_bindings_hold_no_element_loops() -> None:
    for path, code in sources(".cpp", under=CSRC / "python"):
        if path.stem == "record":
            continue  # its loops are over the fields of a struct
        for line in without_comments(code).splitlines():
            found = re.search(r"\b(for|while)\s*\(", line)
            assert not found or "push" in line or "append" in line or ":" in line, f"{path}: {line}"


# Beyond the numbered ones.


def test_files_are_small() -> None:
    for path in [*python_files(), *(p for p, _ in sources(*CPP))]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 700, f"{path} has {lines} lines"
