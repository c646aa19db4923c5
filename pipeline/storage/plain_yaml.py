"""YAML files as plain data, read as DVC reads them: version 1.2, where `1e-3` is a number, `yes` and `no` are words."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from pipeline.runtime.errors import InputError

MAX_DEPTH = 50  # of nested collections


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, as plain data: no tags, anchors or repeated keys.

    Raises InputError for anything else, and for a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _check_plain(text)
        return as_mapping(yaml.load(text, _Loader), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as such") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path} is not plain YAML{line}: {problem}") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain data by YAML 1.2's core rules, which DVC follows; PyYAML's own are those of 1.1.

    PyYAML and not ruamel.yaml, which knows 1.2, since its import takes five times as long, and reading ten times.
    """

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

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


def _check_plain(text: str) -> None:
    """Raise YAMLError for anchors, tags and deep nesting, before anything is built."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases are not allowed"
        elif getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not allowed"
        elif depth > MAX_DEPTH:
            problem = "it is nested too deeply"
        if problem:
            raise ConstructorError(None, None, problem, event.start_mark)


def as_mapping(value: object, where: str) -> dict[str, Any]:
    """`value` with text as keys; null is empty. Raises InputError, about `where`, for anything but a mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {short(value)}: a mapping of keys to values is expected")
    return {str(key): item for key, item in value.items()}


def short(value: object) -> str:
    """A value as errors show it: at most 60 characters."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
