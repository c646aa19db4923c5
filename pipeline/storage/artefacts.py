"""Outputs of the stages: every path under data/<domain>/ and reports/<domain>/, and every Parquet column.

A table is one Parquet file or a folder of shards; lists have a fixed size, s is float16 (byte-stream split and zstd),
and the schema's metadata records its origin. polars and pyarrow read them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtime.errors import InputError, nearest
from pipeline.runtime.files import shard_name as shard_name
from pipeline.storage import parquet
from pipeline.storage.parquet import Column

if TYPE_CHECKING:
    import polars as pl

    from pipeline.storage.domains import Domain

Where = Mapping[str, Any]
SPLITS = ("train", "val", "test")
FAKE_VAL_EVERY = 50  # every 50th fake is for validation

SCHEMAS: dict[str, tuple[Column, ...]] = {
    "images": (  # image: encoded bytes; params: the renderer's parameters as JSON
        Column("id", "int64"),
        Column("split", "string"),
        Column("image", "binary"),
        Column("params", "string", nullable=True),
    ),
    "fakes": (Column("id", "int64"), Column("w", "float32 list")),  # w [D]
    "reals": (  # w_plus [L*D]; error: mean squared error of the inversion, on [0,1]
        Column("id", "int64"),
        Column("split", "string"),
        Column("w_plus", "float32 list"),
        Column("error", "float32"),
    ),
    "details": (  # of edited rows; detail [C*r*r]: feature residual of their inversion
        Column("id", "int64"),
        Column("detail", "float16 list", nullable=True),
    ),
    "codes": (  # source: "fake" or "real"; s [S]; clip [E], not normalised
        Column("id", "int64"),
        Column("source", "string"),
        Column("split", "string"),
        Column("s", "float16 list"),
        Column("clip", "float32 list"),
    ),
    "edits": (  # s [S] after the edit; mask: PNG, black where unchanged; evaluations: forward passes per image
        Column("id", "int64"),
        Column("prompt", "string"),
        Column("strength", "float32"),
        Column("image", "binary"),
        Column("s", "float16 list", nullable=True),
        Column("mask", "binary", nullable=True),
        Column("evaluations", "int32"),
    ),
}


class DomainPaths:
    """Paths of one domain's artefacts in the project at `root`."""

    def __init__(self, domain: str | Domain, root: Path) -> None:
        self.domain: str = domain if isinstance(domain, str) else domain.name
        self.root = Path(root)
        self.data = self.root / "data" / self.domain
        self.images = self.data / "images"
        self.prepared = self.data / "prepared.json"  # counts of photographs, and those skipped, with reasons
        self.fakes = self.data / "fakes"
        self.reals = self.data / "reals"
        self.details = self.data / "details"
        self.codes = self.data / "codes"
        self.s_stats = self.data / "s_stats.safetensors"
        self.relevance = self.data / "relevance.safetensors"
        self.mapper = self.data / "mapper.safetensors"
        self.mapper_wplus = self.data / "mapper_wplus.safetensors"
        self.diffusion = self.data / "diffusion.safetensors"
        self.evaluation = self.data / "evaluation"
        self.scores = self.evaluation / "scores.parquet"  # a row per editor and case
        self.figures = self.evaluation / "figures"  # images, and their captions in captions.json
        self.clip_map = self.evaluation / "clip_map.parquet"
        self.timings = self.data / "timings"
        self.pretraining = self.root / "data" / "pretraining" / self.domain
        self.reports = self.root / "reports" / self.domain
        self.metrics = self.reports / "metrics.json"
        self.summary = self.reports / "summary.json"
        self.full = self.reports / "full" / "metrics.json"  # of evaluate.scale=full, committed by hand
        self.grid = self.reports / "grid.png"
        self.plots = self.reports / "plots"
        self.trials = self.reports / "trials"
        self.page = self.reports / "index.html"

    def edits(self, editor: str) -> Path:
        """Folder of one editor's edits."""
        return self.data / "edits" / editor

    def curve(self, name: str) -> Path:
        """Training curve of a stage, for DVC's plots and the report."""
        return self.data / "curves" / f"{name}.csv"

    def timing(self, stage: str) -> Path:
        """Seconds and peak memory of a stage's last run; not hashed by DVC."""
        return self.timings / f"{stage}.json"


def fake_split(row_id: int) -> str:
    """Split of a generated row: every 50th is "val", the rest "train". `sampling.noise` depends on it."""
    return "val" if row_id % FAKE_VAL_EVERY == 0 else "train"


def write_shard(path: Path, schema: str, columns: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write one shard (or a whole small table) of SCHEMAS[schema] completely or not at all; equal content, equal bytes.

    columns: name -> tensor, array or list of N rows ([N,K] for lists); None for a nullable column without values.
    meta: JSON-able (domain, model fingerprints, params), equal in all shards of a table.

    Raises ValueError for columns that do not fit the schema, InputError when the disk refuses.
    """
    import pyarrow as pa

    expected = _schema(schema)
    names = [column.name for column in expected]
    if set(columns) != set(names):
        raise ValueError(f"{schema} has the columns {names}, not {sorted(columns)}")
    rows = len(columns[names[0]])
    arrays = [parquet.array_of(columns[column.name], column, rows) for column in expected]
    fields = [
        pa.field(column.name, array.type, nullable=column.nullable)
        for column, array in zip(expected, arrays, strict=True)
    ]
    header = parquet.header({**meta, "schema": schema})
    parquet.write(path, pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=header)))


def read(
    path: Path, schema: str, columns: Sequence[str] | None = None, where: Where | None = None, hint: str | None = None
) -> dict[str, Any]:
    """Read columns of a table: numbers [N] and lists [N,K] as tensors (s stays float16), text and bytes as lists.

    Rows come in the order of the shards' names. A nullable list column without values is None.

    columns: names; None for all.
    where: column -> value, or a tuple, list or set of values, of the rows to read.
    hint: advice that ends errors, such as "run `dvc repro`".

    Raises InputError naming the file for a missing, truncated, foreign or mixed table.
    """
    import numpy as np

    wanted, rows, filled = _wanted(schema, columns), count(path, schema, where, hint), 0
    result: dict[str, Any] = {}
    for length, part in _parts(path, schema, wanted, where, hint):
        for name, values in part.items():
            if isinstance(values, list):
                result.setdefault(name, []).extend(values)
            elif values is None:
                result[name] = None
            else:
                whole = result.get(name)
                if whole is None:
                    whole = result[name] = np.empty((rows, *values.shape[1:]), values.dtype)
                whole[filled : filled + length] = values
        filled += length
    return parquet.tensors(result)


def iterate(
    path: Path,
    schema: str,
    columns: Sequence[str] | None = None,
    batch_rows: int = 1024,
    where: Where | None = None,
    hint: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Read as `read` does, whose arguments it takes, but in parts and in bounded memory.

    batch_rows: rows of every part but the last.
    """
    pending: list[dict[str, Any]] = []
    rows = 0
    for length, part in _parts(path, schema, _wanted(schema, columns), where, hint):
        pending, rows = [*pending, part] if length else pending, rows + length
        if rows >= batch_rows:
            whole, start = parquet.joined(pending), 0
            while rows - start >= batch_rows:
                yield parquet.tensors(parquet.sliced(whole, start, start + batch_rows))
                start += batch_rows
            pending, rows = [parquet.sliced(whole, start, rows)], rows - start
    if rows:
        yield parquet.tensors(parquet.joined(pending))


def count(path: Path, schema: str, where: Where | None = None, hint: str | None = None) -> int:
    """Number of rows of a table that match `where`, or of all; arguments as of `read`."""
    if not where:
        return sum(parquet.opened(shard, schema).metadata.num_rows for shard in _checked(path, schema, hint))
    return sum(length for length, _ in _parts(path, schema, [], where, hint))


def metadata(path: Path, schema: str, hint: str | None = None) -> dict[str, Any]:
    """The `meta` that `write_shard` put into a table's first shard; arguments as of `read`."""
    meta = parquet.header_of(parquet.opened(_checked(path, schema, hint)[0], schema).schema_arrow)
    return {key: value for key, value in meta.items() if key != "schema"}


def table(path: Path, columns: Sequence[str] | None = None, hint: str | None = None) -> pl.DataFrame:
    """Read a Parquet file, or a folder of shards, of any schema as a polars frame.

    columns: names; None for all.
    hint: advice that ends errors, such as "run `dvc repro`".

    Raises InputError for a table that is missing or cannot be read.
    """
    import polars as pl

    paths = shards(path, hint)
    try:
        return pl.read_parquet(paths, columns=list(columns) if columns else None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a table ({parquet.reason(error)}): {parquet.advice(hint)}"
        ) from error


def write_table(path: Path, frame: pl.DataFrame, meta: Mapping[str, Any] | None = None) -> None:
    """Write a polars frame as one Parquet file, completely or not at all; equal content, equal bytes.

    meta: entries of the file's header.
    """
    parquet.write(path, frame.to_arrow().replace_schema_metadata(parquet.header(meta or {})))


def _schema(name: str) -> tuple[Column, ...]:
    if name not in SCHEMAS:
        raise ValueError(f"unknown schema '{name}'{nearest(name, SCHEMAS)}")
    return SCHEMAS[name]


def _wanted(schema: str, columns: Sequence[str] | None) -> list[str]:
    names = [column.name for column in _schema(schema)]
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{schema} has no column '{name}'{nearest(name, names)}")
    return list(columns) if columns is not None else names


def shards(path: Path, hint: str | None = None) -> list[Path]:
    """Parquet files of a table, in the order of their rows. Raises InputError when there is none."""
    path = Path(path)
    paths = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not paths:
        state = "holds no Parquet file" if path.is_dir() else "is missing"
        raise InputError(f"{path} {state}: {parquet.advice(hint)}")
    return paths


def _checked(path: Path, schema: str, hint: str | None) -> list[Path]:
    """Shards of a table, each of the right schema, all with the same sizes and origin."""
    paths = shards(path, hint)
    first: Any = None
    for shard in paths:
        arrow = parquet.opened(shard, schema, hint).schema_arrow
        parquet.check(arrow, _schema(schema), shard, schema, hint)
        if first is None:
            first = arrow
        elif arrow != first:
            raise InputError(f"{shard} has other sizes than {paths[0].name}: {parquet.advice(hint)}")
        elif parquet.header_of(arrow) != parquet.header_of(first):
            raise InputError(f"{shard} comes from another run than {paths[0].name}: {parquet.advice(hint)}")
    return paths


def _parts(
    path: Path, schema: str, columns: Sequence[str], where: Where | None, hint: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (rows, columns) of the matching rows, at most ROW_GROUP at once, after an empty part with the shapes."""
    import pyarrow as pa

    kinds = {column.name: column for column in _schema(schema)}
    read = list(dict.fromkeys([*columns, *_wanted(schema, list(where or ()))]))
    whole = _checked(path, schema, hint)
    empty = parquet.opened(whole[0], schema, hint).schema_arrow.empty_table().combine_chunks()
    yield 0, {name: parquet.values_of(empty.column(name).combine_chunks(), kinds[name], None) for name in columns}
    for shard in whole:
        try:
            for batch in parquet.opened(shard, schema, hint).iter_batches(batch_size=parquet.ROW_GROUP, columns=read):
                keep = parquet.matching(batch, where) if where else None
                rows = batch.num_rows if keep is None else int(keep.sum())
                yield rows, {name: parquet.values_of(batch.column(name), kinds[name], keep) for name in columns}
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{shard} is damaged ({parquet.reason(error)}): remove it and {parquet.advice(hint)}"
            ) from error
