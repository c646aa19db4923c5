"""Parquet files as this project writes them: fixed-size lists, fixed options, no Python object per number.

Lists of float16 are byte-stream split and compressed by zstd; polars and pyarrow read them as they are. Equal tables
give equal bytes, with one version of pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Kind = Literal["int64", "int32", "float32", "string", "binary", "float16 list", "float32 list"]
ROW_GROUP = 2048
KEY = b"deltaspace"  # schema metadata: JSON of {"schema": name, ...meta}
ZSTD_LEVEL = 1


@dataclass(frozen=True)
class Column:
    """Name and type of a column. nullable: rows may lack it (of a list column all rows or none)."""

    name: str
    kind: Kind
    nullable: bool = False


def write(path: Path, table: pa.Table) -> None:
    """Write a table as one file, completely or not at all."""
    import pyarrow.parquet as pq

    lists = [f"{f.name}.list.element" for f in table.schema if _is_list(f.type)]
    plain = [f.name for f in table.schema if not _is_list(f.type)]
    images = [name for name in plain if str(table.schema.field(name).type) in ("binary", "large_binary")]
    codecs = {name: "NONE" if name in images else "ZSTD" for name in plain} | dict.fromkeys(lists, "ZSTD")
    options: dict[str, Any] = {
        "compression": codecs,
        "compression_level": {name: ZSTD_LEVEL for name, codec in codecs.items() if codec == "ZSTD"},
        "use_dictionary": [name for name in plain if "string" in str(table.schema.field(name).type)],
        "use_byte_stream_split": lists,
        "write_statistics": [name for name in plain if name == "id"],
        "row_group_size": ROW_GROUP,
    }
    with files.replacing(path) as partial:
        pq.write_table(table, partial, **options)


def opened(shard: Path, schema: str, hint: str | None = None) -> Any:
    """Open a pyarrow.parquet.ParquetFile. Raises InputError, which names `schema`, for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(shard)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{shard} is no whole Parquet file of {schema} ({reason(error)}): remove it and {advice(hint)}"
        ) from error


def check(arrow: pa.Schema, expected: Sequence[Column], shard: Path, schema: str, hint: str | None) -> None:
    """Raise InputError unless a file's arrow schema has exactly the expected columns (lists of any one size)."""
    stored = header_of(arrow).get("schema")
    if stored is not None and stored != schema:
        raise InputError(f"{shard} holds {stored}, not {schema}: {advice(hint)}")
    names = [column.name for column in expected]
    if arrow.names != names:
        raise InputError(f"{shard} has the columns {', '.join(arrow.names)}, but {schema} has {', '.join(names)}")
    for column in expected:
        kind = arrow.field(column.name).type
        if column.nullable and str(kind) == "null":
            continue
        item = kind.value_type if _is_list(kind) else kind
        if _is_list(kind) != ("list" in column.kind) or item != _type(column.kind):
            raise InputError(f"{shard}: column {column.name} is {kind}, but {schema} has {column.kind} there")


def array_of(values: Any, column: Column, rows: int) -> pa.Array:
    """Column as an arrow array of `rows` rows, without a Python object per number. Raises ValueError if unfit."""
    import numpy as np
    import pyarrow as pa

    if column.kind in ("string", "binary"):
        array = pa.array([None] * rows if values is None else list(values), type=_type(column.kind))
    elif values is None:
        array = pa.nulls(rows)  # pyarrow reads no fixed-size lists of nulls back
    else:
        dtype = {"float16 list": "float16", "float32 list": "float32"}.get(column.kind, column.kind)
        plain = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
        if dtype == "float16" and plain.size and not np.abs(plain).max() <= np.finfo(np.float16).max:
            raise ValueError(f"column {column.name} holds numbers that float16 does not")
        plain = np.ascontiguousarray(plain, dtype=dtype)
        if plain.ndim != (2 if "list" in column.kind else 1):
            raise ValueError(f"column {column.name} cannot have the shape {list(plain.shape)}")
        array = pa.array(plain.reshape(-1))
        if "list" in column.kind:
            item = pa.field("element", array.type, nullable=False)
            array = pa.FixedSizeListArray.from_arrays(array, type=pa.list_(item, plain.shape[1]))
    if len(array) != rows or (array.null_count and not column.nullable):
        raise ValueError(f"column {column.name} has {len(array)} rows, {array.null_count} without a value, of {rows}")
    return array


def _type(kind: Kind) -> pa.DataType:
    """Arrow type of a column, or of a list's items."""
    import pyarrow as pa

    return getattr(pa, kind.removesuffix(" list"))()


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(kind)


def values_of(array: Any, column: Column, keep: Any) -> np.ndarray | list[Any] | None:
    """Rows `keep` (a boolean array or None for all) of an arrow column; a list column of nulls is None."""
    if column.kind in ("string", "binary"):
        values = array.to_pylist()
        return values if keep is None else [value for value, wanted in zip(values, keep, strict=True) if wanted]
    if str(array.type) == "null":
        return None
    if "list" in column.kind:
        plain = array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), array.type.list_size)
    else:
        plain = array.to_numpy(zero_copy_only=True)
    return plain if keep is None else plain[keep]


def tensors(part: dict[str, Any]) -> dict[str, Any]:
    """Convert arrays to tensors; arrays in arrow's own memory are copied."""
    import numpy as np
    import torch

    return {
        name: torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if isinstance(values, np.ndarray)
        else values
        for name, values in part.items()
    }


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate parts."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, list):
            joined[name] = [value for some in values for value in some]
        else:
            joined[name] = None if first is None else np.concatenate(values)
    return joined


def sliced(part: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Rows start..stop of a part."""
    return {name: None if values is None else values[start:stop] for name, values in part.items()}


def header(meta: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata that records the origin of a table."""
    return {KEY: json.dumps(dict(meta), sort_keys=True, ensure_ascii=False).encode()}


def header_of(schema: pa.Schema) -> dict[str, Any]:
    """`meta` of `header`; empty for files of other writers."""
    try:
        header = json.loads((schema.metadata or {}).get(KEY, b"{}"))
    except ValueError:
        header = None
    return header if isinstance(header, dict) else {}


def matching(batch: pa.RecordBatch, where: Mapping[str, Any]) -> np.ndarray:
    """Boolean array [N] of the rows with all the values of `where`."""
    import numpy as np

    keep = np.ones(batch.num_rows, dtype=bool)
    for name, value in where.items():
        wanted = value if isinstance(value, tuple | list | set | frozenset | range) else (value,)
        keep &= np.fromiter((item in wanted for item in batch.column(name).to_pylist()), bool, batch.num_rows)
    return keep


def advice(hint: str | None) -> str:
    """Advice about an unusable table: `hint`, or the usual."""
    return hint or "run `dvc repro`"


def reason(error: BaseException) -> str:
    """First line of an error, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
