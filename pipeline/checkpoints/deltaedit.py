"""Imports DeltaEdit's released mapper (`net_face.pth`), relevance matrix (`fs3.npy`) and codes (`.npy`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import delta_mapper
from pipeline.checkpoints import reader
from pipeline.checkpoints.tensor_table import listed
from pipeline.models import stylegan2
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.sampling import Moments
from pipeline.storage import artefacts, weights

if TYPE_CHECKING:
    from pipeline.models.stylespace import StyleLayout
    from pipeline.storage.domains import Domain

SHARD = 4096  # rows
MAX_CLIP = 4096  # numbers in an embedding


def layout_of(domain: Domain, root: Path) -> StyleLayout:
    """The style layout of a domain's generator, from the header of its weights."""
    path = root / domain.generator.path
    meta = weights.read_meta(path, hint=f"import the generator of {domain.name} first")
    try:
        with weights.Unfilled():
            return stylegan2.build(meta["model"]).layout
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has no description of its generator: import it again") from error


def mapper_of(path: Path, layout: StyleLayout) -> tuple[delta_mapper.DeltaMapper, int]:
    """(mapper, CLIP dimension) of a bare state dict. InputError when it is another layout's."""
    content = reader.read(path)
    tree = content.tree
    if not isinstance(tree, dict) or not any(str(key).startswith("cm_") for key in tree):
        raise InputError(f"{path} holds no Delta Mapper: a state dict with sm_coarse.mapping.1.weight is expected")
    with reader.importing(path):
        state = content.take(tree)
    first = [value for key, value in state.items() if key.startswith("cm_") and key.endswith("mapping.1.weight")]
    conditions = {int(value.shape[-1]) for value in first}
    if len(conditions) != 1 or (width := conditions.pop()) % 2 or not 0 < width <= 2 * MAX_CLIP:
        raise InputError(f"{path} cannot be imported: its cm_ stacks do not agree on the size of a condition")
    with weights.Unfilled():
        mapper = delta_mapper.DeltaMapper(layout, width // 2)
    expected = {key: value.shape for key, value in mapper.state_dict().items()}
    if set(state) != set(expected):
        raise InputError(f"{path} cannot be imported: {listed(set(state) ^ set(expected))} missing or too many")
    for key, value in state.items():
        if value.shape != expected[key]:
            raise InputError(
                f"{path} was trained for another generator: {key} has the shape {list(value.shape)}, "
                f"{list(expected[key])} is expected for {layout.size} style channels"
            )
    mapper.load_state_dict(state, assign=True)
    return mapper, width // 2


def relevance(path: Path, layout: StyleLayout) -> tuple[Tensor, list[str]]:
    """(matrix [S,E] float32, warnings) of a `.npy` file with a row per style channel.

    A file without the last layers gets rows of zeros for them: no text moves their channels.
    """
    rows = _array(path, "a relevance matrix")
    have, size = rows.shape[0], layout.size
    ends = list(accumulate(layout.dims))
    if have not in ends:
        layers = ", ".join(map(str, ends))
        raise InputError(f"{path} has {have} rows: {size} are expected (or as many as the first layers have: {layers})")
    matrix, warnings = torch.zeros(size, rows.shape[1]), []
    matrix[:have] = _numbers(path, rows)
    if have < size:
        count = ends.index(have) + 1
        warnings.append(f"it ends with style layer {count} of {len(ends)}: the others are never edited")
    lengths = matrix[:have].norm(dim=1)
    if float((lengths - 1).abs().max()) > 0.02:
        low, high = lengths.aminmax()
        warnings.append(f"its rows are {low:.3f} to {high:.3f} long, not 1")
    return matrix, warnings


def codes(pairs: dict[str, tuple[Path, Path]], layout: StyleLayout, folder: Path, meta: dict[str, Any]) -> int:
    """Write shards of the table `codes` into `folder`, and s_stats.safetensors beside them; returns the number of rows.

    pairs: source ("fake", "real") -> paths of s [N,S] and of CLIP features [N,E].
    layout: of the domain's generator, which s must fit.
    meta: header of the shards.

    Every 50th row is for validation, of reals too. s_stats are of the fakes in training, or of the reals without fakes.
    """
    arrays = {source: _pair(*paths, layout) for source, paths in pairs.items()}
    if len({clip.shape[1] for _, clip in arrays.values()}) > 1:
        raise InputError("the CLIP features of fakes and reals differ in size: both must come from one network")
    spread, shard, spread_of = Moments(), 0, "fake" if "fake" in arrays else "real"
    for source, (s, clip) in arrays.items():
        for start, style, embedding in _chunks(*pairs[source], s, clip):
            ids = list(range(start, start + len(style)))
            split = [artefacts.fake_split(row) for row in ids]
            columns = {"id": ids, "source": [source] * len(ids), "split": split, "s": style.half(), "clip": embedding}
            if not bool(torch.isfinite(columns["s"]).all()):
                raise InputError(f"{pairs[source][0]} holds numbers beyond 65,504: no style code has them")
            artefacts.write_shard(folder / artefacts.shard_name(shard), "codes", columns, meta)
            shard += 1
            if source == spread_of:
                spread.add(style[[part == "train" for part in split]].half())
    weights.save(folder.with_name("s_stats.safetensors"), spread.result(), meta, half=False)
    return sum(len(s) for s, _ in arrays.values())


def replace_codes(
    pairs: dict[str, tuple[Path, Path]], layout: StyleLayout, paths: artefacts.DomainPaths, meta: dict[str, Any]
) -> int:
    """Replace a domain's codes and s_stats by `codes`, once all of it is written; returns the number of rows.

    pairs: source ("fake", "real") -> paths of s [N,S] and of CLIP features [N,E].
    layout: of the domain's generator.
    paths: the domain's files.
    meta: header of the shards.
    """
    partial = paths.codes.with_name(f".import.{os.getpid()}.partial")
    try:
        rows = codes(pairs, layout, partial / paths.codes.name, meta)
        for target in (paths.codes, paths.s_stats):
            files.remove(target)
            (partial / target.name).rename(target)
    finally:
        if partial.exists():
            files.remove(partial)
    return rows


def _pair(s_path: Path, clip_path: Path, layout: StyleLayout) -> tuple[np.ndarray, np.ndarray]:
    s, clip = _array(s_path, "style codes"), _array(clip_path, "CLIP features")
    if s.shape[1] != layout.size:
        raise InputError(f"{s_path} has {s.shape[1]} style channels: the domain's generator has {layout.size}")
    if len(s) != len(clip):
        raise InputError(f"{s_path} has {len(s)} rows, {clip_path} {len(clip)}: they must be of the same images")
    if len(s) < 3:
        raise InputError(f"{s_path} has {len(s)} rows: too few to train on")
    return s, clip


def _chunks(s_path: Path, clip_path: Path, s: np.ndarray, clip: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor]]:
    for start in range(0, len(s), SHARD):
        rows = slice(start, start + SHARD)
        yield start, _numbers(s_path, s[rows]), _numbers(clip_path, clip[rows])


def embeddings(images: Path, texts: Path) -> tuple[Tensor, Tensor]:
    """Two `.npy` files of embeddings, row for row of images and of their texts -> [N,E] each, N at least 3."""
    rows = [_array(path, "embeddings") for path in (images, texts)]
    if rows[0].shape != rows[1].shape or len(rows[0]) < 3:
        shapes = " and ".join(str(list(array.shape)) for array in rows)
        raise InputError(
            f"{images} and {texts} hold {shapes}: equally many embeddings of one size, from 3 up, are expected"
        )
    return _numbers(images, rows[0]), _numbers(texts, rows[1])


def _array(path: Path, what: str) -> np.ndarray:
    """A `.npy` file of floats [N,K], memory-mapped; pickled arrays are refused."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no plain file: check the name")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError, SyntaxError, OverflowError, struct.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} is no whole .npy file of numbers ({reason}): fetch it again") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays: give {what} as one .npy file")
    if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8 or 0 in array.shape:
        raise InputError(f"{path} holds {list(array.shape)} of {array.dtype}: {what} [rows, numbers] are expected")
    if array.shape[1] > MAX_CLIP and what != "style codes":
        raise InputError(f"{path} holds {list(array.shape)}: {what} have at most {MAX_CLIP} numbers a row")
    return array


def _numbers(path: Path, rows: np.ndarray) -> Tensor:
    """Rows in memory as float32; InputError unless all are finite."""
    numbers = torch.from_numpy(np.array(rows, dtype=np.float32))
    if not bool(torch.isfinite(numbers).all()):
        raise InputError(f"{path} holds numbers that are not finite")
    return numbers
