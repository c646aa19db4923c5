"""params.yaml: one section per stage or editor, read into the frozen dataclass beside the method that it configures.

A setting is resolved in one way everywhere; later ones win: the dataclass's default, the domain's `defaults`,
params.yaml (unless null), the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.runtime.errors import InputError, nearest
from pipeline.storage.plain_yaml import as_mapping, read_mapping, short

if TYPE_CHECKING:
    from pipeline.storage.domains import Domain

Section = TypeVar("Section")
FILE = "params.yaml"
RENAMED = {  # old name of a setting -> its names now, in one class or another
    "agree": ("same_sign",),
    "share": ("top_share",),
    "within": ("max_sigma",),
    "ridge": ("delta_ridge",),
    "tries": ("candidate_strengths",),
    "enough": ("clip_progress",),
    "fade": ("detail_decay", "lr_decay"),
    "places": ("region_share",),
    "ratio": ("encode_ratio",),
    "carry": ("generator_share",),
    "draws": ("mask_draws",),
    "noise": ("mask_noise",),
    "cell": ("mask_cell",),
    "clamp": ("mask_clamp",),
    "cut": ("mask_threshold",),
    "siblings": ("sibling_share",),
}
REMOVED = ("amplify", "refine")  # settings of diffusion editors, which were off everywhere
RENAMED_EDITORS = {"straightforward": "clip_target"}
EXPECTED = {  # pydantic's error type -> what is expected
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
}


@dataclass(frozen=True)
class Resolved(Generic[Section]):
    """Effective values of a section. origins: setting -> where its value comes from, such as "params.yaml"."""

    values: Section
    origins: dict[str, str]


def root() -> Path:
    """Folder of the project: $DELTASPACE_ROOT, else the nearest folder above with params.yaml and domains/, else the
    one that the code came with. Raises InputError where $DELTASPACE_ROOT is no folder."""
    environment_root = os.environ.get("DELTASPACE_ROOT")
    if environment_root:
        if not Path(environment_root).is_dir():
            raise InputError(
                f"DELTASPACE_ROOT names {environment_root}, which is no folder: set it to the project's folder"
            )
        return Path(environment_root).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file() and (folder / "domains").is_dir():
            return folder
    return Path(__file__).resolve().parents[2]


def load_yaml(root: Path) -> dict[str, Any]:
    """The whole of params.yaml as plain data. Raises InputError where it is missing or lists a renamed editor."""
    path = Path(root) / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing: run inside the project, or set DELTASPACE_ROOT to its folder")
    content = read_mapping(path)
    for kind, listed in as_mapping(content.get("editors"), "editors").items():
        for old, new in RENAMED_EDITORS.items():
            if old in (listed or ()) or old in (content.get(f"edit_{kind}") or ()):
                raise InputError(f"{FILE}: the editor {old} is now {new}: rename it in editors and edit_{kind}")
    return content


def section(
    cls: type[Section],
    root: Path,
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    domain: Domain | None = None,
) -> Section:
    """Values of `resolve`, which takes the same arguments."""
    return resolve(cls, root, name, overrides, domain=domain).values


def resolve(
    cls: type[Section],
    root: Path,
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    domain: Domain | None = None,
) -> Resolved[Section]:
    """Effective values of a section of params.yaml, and the origin of each.

    `null` in params.yaml stands for the domain's default, else for None where the type allows it, else for the
    dataclass's default. Where `cls` has SHARED, that section holds what section `name` leaves out.

    cls: frozen dataclass of the section.
    root: folder of the project.
    name: of the section, such as "mapper" or "edit_latent.deltaedit_g".
    overrides: setting -> value from the command line; None is a value too.
    domain: whose defaults stand for null; None: no domain's.

    Raises InputError naming section.key for an unknown, renamed or missing setting, for one of the wrong type and for
    values that `cls` refuses.
    """
    shared = [cls.SHARED] if hasattr(cls, "SHARED") else []  # type: ignore[attr-defined]
    types, content = typing.get_type_hints(cls), load_yaml(root)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    origins = {name: "default" for name, field in fields.items() if _has_default(field)}

    layer: dict[str, tuple[Any, str]] = {}
    for part in [*shared, name]:
        file = f"domains/{domain.name}.yaml" if domain else ""
        defaults = _find(domain.defaults if domain else {}, part, {})
        layer |= _checked(defaults, fields, f"{file}: defaults.{part}", file)
    for key, (value, origin) in layer.items():
        if value is not None:
            values[key], origins[key] = value, origin

    layer = {}
    for part in [*shared, name]:
        layer |= _checked(
            _find(content, part, None if part == name else {}),
            fields,
            part,
            FILE if part == name else f"{FILE}, {part}",
        )
    for key, (value, origin) in layer.items():
        if value is not None or (key not in values and type(None) in typing.get_args(types[key])):
            values[key], origins[key] = value, origin
        elif key not in origins:
            whose = f"{FILE} and the domain {domain.name}" if domain else FILE
            raise InputError(f"{name}.{key} has no value in {whose}: add it")

    for key, (value, origin) in _checked(overrides or {}, fields, name, "command line").items():
        values[key], origins[key] = value, origin
    built = build(cls, values, name)
    return Resolved(built, {key: origins[key] for key in fields})


def describe_origins(values: Any, origins: Mapping[str, str], chosen: Mapping[str, Any] | None = None) -> list[str]:
    """One line per setting, such as "strength = 1.25 (params.yaml)".

    values, origins: of `resolve`.
    chosen: settings that the command line passes to each edit, and not to the editor.
    """
    shown = {name: (getattr(values, name), origin) for name, origin in origins.items()}
    shown |= {name: (value, "command line") for name, value in (chosen or {}).items()}
    return [f"{name} = {value!r} ({origin})" for name, (value, origin) in shown.items()]


def build(cls: type[Section], values: object, where: str, extra_fields: Mapping[str, Any] | None = None) -> Section:
    """Build a frozen dataclass from plain data, every type checked.

    where: prefix of the key in error messages, such as "mapper" or "domains/cat.yaml".
    values: content of the section or file; its keys are fields of `cls`.
    extra_fields: fields that are set as they are, without a check.

    Raises InputError as `resolve` does.
    """
    from pydantic import ValidationError

    values, extra_fields = as_mapping(values, where), extra_fields or {}
    fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    names = [name for name in fields if name not in extra_fields]
    _checked(values, names, where, "")
    try:
        # JSON, whose strict rules take a list for a tuple and a whole number for a float, and nothing else for another
        checked = _validator(cls, tuple(names)).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise InputError(_explained(error.errors(include_url=False)[0], where)) from error
    try:
        return cls(**extra_fields, **checked)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


@functools.cache
def _validator(cls: type, names: tuple[str, ...]) -> Any:
    """Validator of the fields `names` of a dataclass; imported late, since pydantic takes a tenth of a second."""
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

    types = typing.get_type_hints(cls)
    defaults = {field.name for field in dataclasses.fields(cls) if _has_default(field)}
    typed_dict: Any = TypedDict  # of fields that are only known here
    content = typed_dict(
        cls.__name__, {name: typing.NotRequired[types[name]] if name in defaults else types[name] for name in names}
    )
    content.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(content)


def _find(content: Mapping[str, Any], name: str, missing: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Section `name` ("edit_latent.deltaedit_g") of nested mappings; `missing` or InputError where it is absent."""
    for part in name.split("."):
        if part not in content:
            if missing is not None:
                return missing
            raise InputError(f"{FILE} has no section '{name}'{nearest(part, content)}: add it")
        content = as_mapping(content[part], name)
    return content


def _checked(values: Mapping[str, Any], known: Iterable[str], where: str, origin: str) -> dict[str, tuple[Any, str]]:
    """setting -> (value, origin). InputError for a setting that is not known."""
    known = list(known)
    for key in values:
        if key in known:
            continue
        for new in RENAMED.get(key, ()):
            if new in known:
                raise InputError(f"{_key(where, key)} is now {new}: rename it")
        if key in REMOVED:
            raise InputError(f"{_key(where, key)} no longer exists: remove it")
        raise InputError(f"{_key(where, key)} is unknown{nearest(key, known)}: known are {', '.join(known)}")
    return {key: (value, origin) for key, value in values.items()}


def _explained(error: Mapping[str, Any], where: str) -> str:
    """One line about pydantic's error."""
    location, kind, value, more = error["loc"], error["type"], error["input"], error.get("ctx", {})
    path = where
    for part in location:
        path = f"{path}[{part}]" if isinstance(part, int) else _key(path, part)
    if kind == "missing" and isinstance(location[-1], int):
        return f"{path.rpartition('[')[0]} has {len(value)} entries: more are expected"
    if kind in ("missing", "unexpected_keyword_argument"):
        return f"{path} is {'missing: add it' if kind == 'missing' else 'unknown'}"
    if kind == "value_error":  # raised by a dataclass
        return f"{path}: {more['error']}"
    if kind == "too_long":
        return f"{path} has {len(value)} entries: {more['max_length']} are expected"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", more["expected"])
        return f"{path} is {value!r}{nearest(str(value), choices)}: one of {', '.join(choices)} is expected"
    return f"{path} is {short(value)}: {EXPECTED.get(kind, error['msg'])} is expected"


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _key(where: str, key: str) -> str:
    return f"{where}: {key}" if where.endswith(".yaml") else f"{where}.{key}"
