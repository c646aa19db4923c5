"""Tensors of third-party files as descriptions (storage, shape, stride), checked before a byte is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.safe_pickle import Thing, shown
from pipeline.runtime.errors import InputError

STORAGES = {  # names of torch's storage classes
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMPY = {
    **{f"f{size}": getattr(torch, f"float{8 * size}") for size in (2, 4, 8)},
    **{f"i{size}": getattr(torch, f"int{8 * size}") for size in (1, 2, 4, 8)},
    **{"u1": torch.uint8, "b1": torch.bool},
}
SAFETENSORS = {
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{"BF16": torch.bfloat16, "U8": torch.uint8, "BOOL": torch.bool},
}
MAX_DIMS = 8


@dataclass
class Storage:
    """`numel` numbers from byte `start` of a file or of bytes; start None: not known yet."""

    source: Path | bytes
    dtype: torch.dtype
    numel: int
    start: int | None = None

    def read(self, first: int, count: int) -> Tensor:
        """Numbers first .. first + count - 1 as a new tensor."""
        if self.start is None:
            raise ValueError("a storage without data")
        begin, length = self.start + first * self.dtype.itemsize, count * self.dtype.itemsize
        if isinstance(self.source, bytes):
            content = bytearray(memoryview(self.source)[begin : begin + length])
            whole = len(content) == length
        else:
            content = bytearray(length)
            with self.source.open("rb") as file:
                file.seek(begin)
                whole = file.readinto(content) == length
        if not whole:
            raise ValueError("a storage is cut short")
        return torch.frombuffer(content, dtype=self.dtype) if length else torch.empty(0, dtype=self.dtype)


@dataclass(frozen=True)
class TensorSpec:
    """Description of a tensor in a file, not yet trusted: a strided window of a storage.

    offset, stride: in numbers, not bytes.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def check(self) -> None:
        """Raises ValueError for a window outside its storage; stride 0 is allowed."""
        numbers = (self.offset, *self.shape, *self.stride)
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise ValueError("an impossible shape")
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMS:
            raise ValueError("an impossible shape")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if self.numel and last >= self.storage.numel:
            raise ValueError(f"the shape {list(self.shape)}, but its data are {self.storage.numel} numbers")

    def tensor(self) -> Tensor:
        """The numbers, in new memory."""
        self.check()
        if not self.numel:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        count = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.storage.read(self.offset, count).as_strided(self.shape, self.stride).contiguous()


def of_storage(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorSpec:
    """Description of a tensor, called for torch's _rebuild_tensor, whose arguments it takes.

    storage: a `Storage`; offset, shape, stride: in numbers. Gradients and hooks, the further arguments, are ignored.

    Raises ValueError for anything that is not a tensor with data.
    """
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without data")
    return TensorSpec(storage, offset, shape, stride)


def of_array(thing: Thing) -> TensorSpec:
    """Description of a NumPy array: state (version, shape, dtype, column order, bytes)."""
    _, shape, dtype, columns, content = thing.state if thing.state is not None else thing.arguments
    if not isinstance(content, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without data")
    kind = numpy_dtype(dtype)
    return whole(Storage(bytes(content), kind, len(content) // kind.itemsize, 0), shape, bool(columns))


def whole(storage: Storage, shape: tuple[int, ...], columns: bool = False) -> TensorSpec:
    """All of a storage as one tensor, rows first, or columns first."""
    sizes = [n if type(n) is int and 0 <= n < 2**40 else 2**40 for n in shape[:MAX_DIMS]]
    order = range(len(sizes)) if columns else range(len(sizes) - 1, -1, -1)
    stride, step = [0] * len(sizes), 1
    for axis in order:
        stride[axis], step = step, step * sizes[axis]
    return TensorSpec(storage, 0, shape, tuple(min(step, 2**61) for step in stride))


def numpy_dtype(thing: Any) -> torch.dtype:
    """The type a NumPy dtype names, such as 'f4', in little-endian order."""
    if not isinstance(thing, Thing) or thing.path != "numpy.dtype":
        raise ValueError("an unknown type of numbers")
    code = str(thing.arguments[0]).lstrip("<|=")
    order = thing.state[1] if isinstance(thing.state, tuple) and len(thing.state) > 1 else "<"
    if code not in NUMPY or order not in ("<", "|", "="):
        raise ValueError(f"numbers of type '{order}{code}'"[:60])
    return NUMPY[code]


def check(specs: Mapping[str, Any], size: int) -> dict[str, TensorSpec]:
    """Check that each tensor of a file lies within its storage.

    specs: name -> TensorSpec, or NumPy array as a Thing.
    size: of the file in bytes. All tensors together may not be larger, so that a small file never fills the memory.

    Raises InputError naming the wrong tensor.
    """
    total, checked = 0, {}
    for name, value in specs.items():
        check_name(name)
        try:
            spec = of_array(value) if isinstance(value, Thing) else value
            if not isinstance(spec, TensorSpec):
                raise ValueError(f"no numbers but {type(spec).__name__}")
            spec.check()
        except (ValueError, TypeError) as error:
            raise InputError(f"'{name}' has {error}") from error
        total += spec.numel * spec.storage.dtype.itemsize
        if total > size:
            raise InputError(f"its tensors claim more than its {size:,} bytes")
        checked[name] = spec
    return checked


def take(specs: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Read the tensors of `specs` after `check`; floats as float32."""
    return {name: numbers(name, spec.tensor()) for name, spec in check(specs, size).items()}


def numbers(name: str, tensor: Tensor) -> Tensor:
    """`tensor` with floats as float32; InputError when they are not finite."""
    if tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all()):  # without a copy
            raise InputError(f"'{name}' holds numbers that are not finite")
    return tensor


def check_name(name: object) -> None:
    """Raises InputError unless `name` is made of words and dots, as names of parameters are."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+([./][A-Za-z0-9_]+)*", name) or len(name) > 200:
        raise InputError(f"'{shown(name)}' is no name of a tensor")


def shape_of(tensors: Mapping[str, Tensor], key: str, dims: int) -> tuple[int, ...]:
    """The shape of a tensor; InputError where it is missing or does not have `dims` dimensions."""
    if key not in tensors:
        raise InputError(f"{key} is missing")
    if tensors[key].dim() != dims:
        raise InputError(f"{key} has the shape {list(tensors[key].shape)}: {dims} dimensions are expected")
    return tuple(tensors[key].shape)


def listed(keys: Iterable[object], most: int = 3) -> str:
    """The first few of many names, for an error."""
    names = sorted(shown(key, 40) for key in keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
