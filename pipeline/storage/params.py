"""params.yaml: one section per stage, read into the frozen dataclass that stands beside the stage's method.

YAML is read as DVC reads it (version 1.2: `1e-3` is a number, `yes` and `no` are words), as plain data only.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from pipeline.runtime.errors import InputError, nearest

if TYPE_CHECKING:
    from pipeline.storage.domains import Domain

Section = TypeVar("Section")
FILE = "params.yaml"


def root() -> Path:
    """The project: $DELTASPACE_ROOT, else the nearest folder above with params.yaml and domains/, else the code's."""
    given = os.environ.get("DELTASPACE_ROOT")
    if given:
        if not Path(given).is_dir():
            raise InputError(f"DELTASPACE_ROOT names {given}, which is no folder: set it to the project's folder")
        return Path(given).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file() and (folder / "domains").is_dir():
            return folder
    return Path(__file__).resolve().parents[2]


def main_root(start: Path | None = None) -> Path:
    """The main checkout of the project at `start` (default: `root()`), also from inside a queued DVC experiment."""
    folder = Path(start) if start else root()
    for inner in folder.parts, folder.resolve().parts:
        for index in range(len(inner) - 3):
            if inner[index : index + 3] == (".dvc", "tmp", "exps"):
                return Path(*inner[:index])
    return folder


def load_yaml(root: Path) -> dict[str, Any]:
    """The whole of params.yaml as plain data."""
    path = Path(root) / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing: run inside the project, or set DELTASPACE_ROOT to its folder")
    return read_mapping(path)


def section(
    cls: type[Section],
    root: Path,
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    domain: Domain | None = None,
) -> Section:
    """Section `name` of params.yaml ("mapper", or "edit_latent.deltaedit_g") as a `cls` with its effective values.

    `overrides` (those not None) win over the file; `null` in the file takes the domain's default for that key. An
    unknown or missing key, a wrong type and a value that `cls` refuses raise InputError naming section.key.
    """
    values: dict[str, Any] = load_yaml(root)
    defaults: dict[str, Any] = domain.defaults if domain else {}
    for part in name.split("."):
        if part not in values:
            raise InputError(f"{FILE} has no section '{name}'{nearest(part, values)}: add it")
        values, defaults = _mapping(values[part], name), _mapping(defaults.get(part), name)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    values = {key: defaults.get(key) if value is None else value for key, value in {**values, **given}.items()}
    whose = f"{FILE} and the domain {domain.name}" if domain else FILE
    return build(cls, values, name, complete=True, null=f"has no value in {whose}")


def build(
    cls: type[Section],
    values: object,
    where: str,
    *,
    complete: bool = False,
    null: str = "is null",
    given: Mapping[str, Any] | None = None,
) -> Section:
    """A dataclass from plain data, every type checked; `where` begins each error's key. `given` is set as it stands.

    With `complete`, even a field with a default must be among the values. `null` words the error for a null.
    """
    values, given = _mapping(values, where), given or {}
    types_of = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init and field.name not in given]  # type: ignore[arg-type]
    names = [field.name for field in fields]
    for key in values:
        if key not in names:
            raise InputError(f"{_key(where, key)} is unknown{nearest(key, names)}: known are {', '.join(names)}")
    for field in fields:
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and (complete or not optional):
            expected = describe(types_of[field.name])
            raise InputError(f"{_key(where, field.name)} is missing: add it, {expected} is expected")
    converted = {key: convert(value, types_of[key], _key(where, key), null) for key, value in values.items()}
    try:
        return cls(**given, **converted)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def convert(value: object, kind: Any, where: str, null: str = "is null") -> Any:
    """`value` as type `kind`: int, float, bool, str, tuples, lists, dicts, Literals, Optionals, dataclasses, Any."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where, null)
    if value is None:
        raise InputError(f"{where} {null}: {describe(kind)} is expected")
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise InputError(
                f"{where} is {value!r}{nearest(str(value), map(str, arguments))}: {describe(kind)} is expected"
            )
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, where)
    if origin is tuple or origin is list:
        return _convert_sequence(value, kind, where)
    if origin is dict:
        items = _mapping(value, where).items()
        return {convert(k, arguments[0], where): convert(v, arguments[1], _key(where, k)) for k, v in items}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(typing.cast(float, value))):
        raise InputError(f"{where} is {_short(value)}: {describe(kind)} is expected")
    return value


def describe(kind: Any) -> str:
    """A type in words, for errors: "a whole number", "a list of 2 (a whole number)"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list) and arguments:
        some = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} x "
        return f"a list of {some}({describe(arguments[0])})"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(kind, "a mapping of keys to values")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as plain data: no tags, anchors or repeated keys."""
    try:
        return _mapping(copy.deepcopy(_parsed(path.read_text(encoding="utf-8"))), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as such") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path} is not plain YAML{line}: {problem}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply: it must be plain data") from error


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """`text` as plain data. Kept, since commands read the same files several times, and PyYAML takes .04 s each."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Plain data after YAML 1.2's core rules; what DVC would read otherwise is refused."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        if getattr(event, "tag", None):
            raise ComposerError(None, None, f"the tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key in keys:
                problem = f"the key '{key}' stands twice" if key else "a key must be a word"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def _convert_union(value: object, kinds: tuple[Any, ...], where: str, null: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    exact = [kind for kind in kinds if type(value) is kind]
    for kind in exact or kinds:
        try:
            return convert(value, kind, where, null)
        except InputError:
            if len(kinds) == 1:
                raise
    raise InputError(f"{where} is {_short(value)}: {' or '.join(map(describe, kinds))} is expected")


def _convert_sequence(value: object, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is {_short(value)}: {describe(kind)} is expected")
    if origin is list or Ellipsis in arguments:
        kinds = arguments[:1] * len(value)
    else:
        kinds = arguments
    if len(kinds) != len(value):
        raise InputError(f"{where} has {len(value)} entries: {describe(kind)} is expected")
    return origin(convert(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(value, kinds, strict=True)))


def _key(where: str, key: str) -> str:
    return f"{where}: {key}" if where.endswith(".yaml") else f"{where}.{key}"


def _mapping(value: object, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {_short(value)}: a mapping of keys to values is expected")
    return {str(key): item for key, item in value.items()}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
