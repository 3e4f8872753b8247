"""fastbert/_C.pyi says what the extension has, and its structs take what the stub says."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
STUB = Path(native.__file__).parents[1] / "_C.pyi"
# What pybind11 prints for the types of arguments, per annotation of the stub.
PRINTED = {"int": "SupportsInt", "float": "SupportsFloat", "bool": "bool", "str": "str"}


@functools.cache
def stub() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    body = ast.parse(STUB.read_text(encoding="utf-8")).body
    return {n.name: n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name)


def arguments(node: ast.FunctionDef) -> list[tuple[str, str, bool]]:
    """(name, type, whether it has a default) of everything but self."""
    args = node.args
    plain = [a for a in args.args if a.arg != "self"]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + [*args.defaults]
    pairs = [
        *zip(plain, defaults, strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    return [(a.arg, ast.unparse(a.annotation), d is not None) for a, d in pairs if a.annotation]


RECORDS = [name for name, node in stub().items() if getattr(node, "decorator_list", None)]
FUNCTIONS = [name for name, node in stub().items() if isinstance(node, ast.FunctionDef)]


def value(annotation: str) -> object:
    """Something of this type."""
    if annotation in stub():
        node = stub()[annotation]
        assert isinstance(node, ast.ClassDef)
        fields = {name: value(kind) for name, kind, _ in arguments(method(node, "__init__"))}
        return getattr(native.library, annotation)(**fields)
    if annotation.endswith(" | None"):
        return value(annotation.removesuffix(" | None"))
    return {"int": 0, "float": 0.5, "bool": False}[annotation]


def test_the_stub_names_everything() -> None:
    public = {name for name in dir(native.library) if not name.startswith("_")}
    assert public == set(stub())


@pytest.mark.parametrize("name", RECORDS)
def test_a_struct_has_the_fields_of_the_stub(name: str) -> None:
    node, struct = stub()[name], getattr(native.library, name)
    assert isinstance(node, ast.ClassDef)
    fields = arguments(method(node, "__init__"))
    assert list(struct._fields) == [field for field, _, _ in fields]
    full = {field: value(kind) for field, kind, _ in fields}
    struct(**full)
    struct(**dict(reversed(full.items())))
    for field, kind, has_default in fields:
        others = {other: given for other, given in full.items() if other != field}
        if has_default:
            struct(**others)
        else:
            with pytest.raises(TypeError, match=f"{name} needs its field {field}"):
                struct(**others)
        if kind.endswith(" | None"):
            struct(**{**full, field: None})
        for wrong in ("a word", None):
            if wrong is not None or not kind.endswith(" | None"):
                with pytest.raises(TypeError, match=rf"{name}\.{field}: "):
                    struct(**{**full, field: wrong})
    with pytest.raises(TypeError, match="has no field 'nothing'"):
        struct(**full, nothing=1)
    with pytest.raises(TypeError, match="by name"):
        struct(*full.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_what_the_stub_says(name: str) -> None:
    node = stub()[name]
    assert isinstance(node, ast.FunctionDef)
    first = (getattr(native.library, name).__doc__ or "").splitlines()[0]
    inside = re.fullmatch(rf"{name}\((.*)\) -> .*", first)
    assert inside, first
    printed = [part.split(":", 1) for part in inside[1].split(", ") if part]
    wanted = arguments(node)
    assert [argument.strip() for argument, _ in printed] == [argument for argument, _, _ in wanted]
    for (_, text), (argument, kind, has_default) in zip(printed, wanted, strict=True):
        assert ("=" in text) == has_default, f"{argument} of {name}"
        plain = kind.removesuffix(" | None")
        assert PRINTED.get(plain, plain) in text, f"{argument} of {name}: {text}"


def test_a_name_made_at_run_time_is_found() -> None:
    """Keywords are compared by identity first; not every string is interned."""
    name = "".join(["row_", "stride"])
    native.library.IndexGrid(**{"data": 0, name: 1, "column_" + name[4:]: 2})


def test_a_pointer_is_not_negative() -> None:
    with pytest.raises(OverflowError, match=r"IndexGrid\.data"):
        native.library.IndexGrid(data=-1, row_stride=0, column_stride=0)
