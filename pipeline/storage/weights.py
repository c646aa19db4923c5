"""Network weights on disk: safetensors files whose header holds the numbers to build the network from."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import digest

__all__ = ["Unfilled", "digest", "load", "read_meta", "save", "save_each"]
KEY = "deltaspace"  # the one entry of the safetensors header's metadata
DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.uint8: "U8"}  # of `save_each`, in safetensors' names


class Unfilled(TorchFunctionMode):
    """Context in which networks are built without random numbers: their parameters' memory stays uninitialised.

    Buffers are filled as usual, since a file need not hold them (masks).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = args[0] if args else kwargs.get("tensor")
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if getattr(func, "__module__", None) == "torch.nn.init" or (in_place and isinstance(target, nn.Parameter)):
            return target
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], half: bool = True) -> None:
    """Write tensors and JSON-able `meta` to `path`, completely or not at all; equal content, equal bytes.

    half: store floating tensors as float16, except those beyond its range (65,504).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored, owned = {}, set()
    for name in sorted(tensors):
        stored[name] = _stored(tensors[name], half)
        memory = stored[name].untyped_storage()
        if memory.data_ptr() in owned:  # tied tensors are stored separately
            stored[name] = stored[name].clone()
        owned.add(memory.data_ptr())
    header = {KEY: json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)}
    with files.replacing(Path(path)) as partial:
        try:
            save_file(stored, partial, metadata=header)
            partial.chmod(0o644)  # safetensors' own is 600
        except SafetensorError as error:  # the disk's error is only in its text
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else error from error


def save_each(path: Path, like: Mapping[str, Tensor], tensor: Callable[[str], Tensor], meta: Mapping[str, Any]) -> None:
    """Write a file as `save` does without `half`, with at most one of its tensors in memory.

    like: names, shapes and types, such as an `Unfilled` network's state.
    tensor: name -> its numbers.
    """
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)}}
    names, end = sorted(like, key=lambda name: (-like[name].dtype.itemsize, name)), 0  # so that all are aligned
    for name in names:
        begin, end = end, end + like[name].numel() * like[name].dtype.itemsize
        about = {"dtype": DTYPES[like[name].dtype], "shape": list(like[name].shape), "data_offsets": [begin, end]}
        header[name] = about
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(Path(path)) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            values = tensor(name)
            if values.shape != like[name].shape:
                raise ValueError(f"{name} has the shape {list(values.shape)}, not {list(like[name].shape)}")
            file.write(values.to(like[name].dtype).contiguous().flatten().numpy().data)


def load(path: Path, device: str = "cpu", hint: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors, meta) of a file from `save` or any other safetensors writer; floats as float32, others as stored.

    hint: advice that ends the error about a missing or broken file, such as "run `deltaspace pretrain cat`".

    Raises InputError for such a file.
    """
    with _opened(Path(path), device, hint) as content:
        tensors = {name: _loaded(content.get_tensor(name)) for name in sorted(content.keys())}
        return tensors, _meta(content)


def read_meta(path: Path, hint: str | None = None) -> dict[str, Any]:
    """Read the `meta` of a file and no tensor."""
    with _opened(Path(path), "cpu", hint) as content:
        return _meta(content)


def _opened(path: Path, device: str, hint: str | None) -> Any:
    from safetensors import SafetensorError, safe_open

    advice = hint or "make it again"
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of weights: {advice}")
    if not path.exists():
        raise InputError(f"{path} is missing: {advice}")
    try:
        return safe_open(str(path), framework="pt", device=device)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is broken or cut short ({reason}): remove it and {advice}") from error


def _meta(content: Any) -> dict[str, Any]:
    try:
        meta = json.loads((content.metadata() or {}).get(KEY, "{}"))
    except ValueError:
        meta = None
    return meta if isinstance(meta, dict) else {}


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    if half and tensor.is_floating_point():
        small = tensor.to(torch.float16)
        if torch.equal(torch.isinf(small), torch.isinf(tensor)):
            tensor = small
    return tensor.contiguous()


def _loaded(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
