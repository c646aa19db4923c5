"""Network weights on disk: safetensors files with what is needed to build the network again in their header."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline import files
from pipeline.files import digest
from pipeline.values import InputError

__all__ = ["Unfilled", "digest", "load", "read_meta", "save"]
KEY = "deltaspace"  # the one entry of the safetensors header's metadata


class Unfilled(TorchFunctionMode):
    """Within it networks are built without drawing numbers: their memory is not touched until it is assigned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], half: bool = True) -> None:
    """Write tensors and JSON-able `meta` to `path`, whole or not at all; equal content gives equal bytes.

    With `half`, floating tensors are stored as float16, except those it cannot hold (beyond 65,504), which stay as
    they are. Integers and booleans always stay.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored, owned = {}, set()
    for name in sorted(tensors):
        stored[name] = _stored(tensors[name], half)
        memory = stored[name].untyped_storage()
        if memory.data_ptr() in owned:  # tied tensors are saved each
            stored[name] = stored[name].clone()
        owned.add(memory.data_ptr())
    header = {KEY: json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)}
    with files.replacing(Path(path)) as partial:
        try:
            save_file(stored, partial, metadata=header)
        except SafetensorError as error:  # what the disk refuses comes as words
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else error from error


def load(path: Path, device: str = "cpu", hint: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, meta) of a file that `save` or any other safetensors writer made; floats as float32, the rest as is.

    `hint` completes the error about a missing or broken file: what makes it, e.g. "run `deltaspace pretrain cat`".
    """
    with _opened(Path(path), device, hint) as content:
        tensors = {name: _loaded(content.get_tensor(name)) for name in sorted(content.keys())}
        return tensors, _meta(content)


def read_meta(path: Path, hint: str | None = None) -> dict[str, Any]:
    """The `meta` of a file alone; no tensor is read."""
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
