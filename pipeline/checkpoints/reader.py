"""Third-party checkpoints read without executing code in them: torch's two formats, NVIDIA's pickles, safetensors.

A file's content is plain values with a `TensorSpec` for each tensor; `Content.take` reads the chosen ones. One reader
for all, since torch.load with weights_only refuses TorchScript archives, such as OpenAI's CLIP, and NVIDIA's pickles.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from pipeline.checkpoints import safe_pickle, tensor_table
from pipeline.checkpoints.safe_pickle import Name, Thing, shown
from pipeline.checkpoints.tensor_table import Storage, TensorSpec
from pipeline.runtime.errors import InputError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two values of torch's older format
MOST_RECORDS = 200_000
MOST_HEADER = 16_000_000  # bytes
OBJECTS = ("argparse.Namespace", "dnnlib.tflib.network.Network", "builtins.object")
MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "dnnlib.util.EasyDict", "builtins.dict")
BROKEN = (  # errors of parsing a malformed file; torch's own are RuntimeErrors
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Content:
    """Content of a file: plain values, `Thing`s for objects, `TensorSpec`s for tensors. size: of the file in bytes."""

    path: Path
    tree: Any
    size: int

    def check(self, specs: Mapping[str, Any]) -> dict[str, TensorSpec]:
        """The tensors' descriptions, checked: together within the file's size. No tensor is read."""
        return tensor_table.check(specs, self.size)

    def take(self, specs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Read tensors by their descriptions, floats as float32; InputError naming the tensor that is wrong."""
        return tensor_table.take(specs, self.size)


def read(path: Path, script: bool = False) -> Content:
    """The content of a `.pt`, `.pth`, `.pkl` or `.safetensors` file, by what it begins with and not by its name.

    script: read TorchScript archives too, as the objects that their program would hold; their code is not read
    Raises InputError, one line, for a file that is missing, broken, truncated, that claims more data than it has, or
    that names a class or function outside the allow-list.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file of weights")
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no plain file: check the name")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
        if start[:4] == b"PK\x03\x04":
            return Content(path, _zipped(path, size, script), size)
        if len(start) > 8 and start[8:9] == b"{":
            return Content(path, _safetensors(path), size)
        with path.open("rb") as file:
            return Content(path, _pickled(path, file, size), size)
    except InputError as error:
        raise InputError(f"{path} is refused: {error}") from error
    except BROKEN as error:
        raise _broken(path, error) from error


@contextmanager
def importing(path: Path) -> Iterator[None]:
    """Turn every error about the content of `path` into an InputError of one line that names the file."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path} cannot be imported: {text}") from error
    except BROKEN as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> InputError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(f"{path} is broken, truncated or of another kind ({reason}): fetch it again")


def _safetensors(path: Path) -> dict[str, TensorSpec]:
    """Name -> description; the library checks that the ranges of the header lie within the file and do not overlap."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER:
            raise InputError(f"its header claims {length:,} bytes")
        header = json.loads(file.read(length))
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    header.pop("__metadata__", None)
    return {name: _described(path, 8 + length, about) for name, about in header.items()}


def _described(path: Path, start: int, about: dict[str, Any]) -> TensorSpec:
    dtype, shape, (begin, end) = tensor_table.SAFETENSORS[about["dtype"]], tuple(about["shape"]), about["data_offsets"]
    return tensor_table.whole(Storage(path, dtype, (end - begin) // dtype.itemsize, start + begin), shape)


def _zipped(path: Path, size: int, script: bool) -> Any:
    """torch's format since 1.6: a zip of uncompressed records, `data.pkl` and the storages it refers to.

    The code records of a TorchScript archive, some of which are compressed, are never opened.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = archive.infolist()
        if len(records) > MOST_RECORDS:
            raise InputError(f"it has {len(records):,} records")
        for record in records:
            if record.filename.startswith("/") or ".." in record.filename.split("/") or "\\" in record.filename:
                raise InputError(f"a record's name leaves it: '{shown(record.filename)}'")
        code = {record.filename for record in records if record.filename.partition("/")[2].startswith("code/")}
        if code and not script:
            raise InputError("it is a TorchScript program, not a file of weights")
        records = [record for record in records if record.filename not in code]
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
                raise InputError("its records are compressed, which torch never does")
        if sum(record.file_size for record in records) > size:
            raise InputError("its records claim more bytes than it has")
        for record in records:
            _check(archive, record)
        records_by_name = {record.filename.partition("/")[2]: record for record in records}
        if "data.pkl" not in records_by_name:
            raise InputError("it is a zip without torch's data.pkl")
        if "byteorder" in records_by_name and archive.read(records_by_name["byteorder"]) != b"little":
            raise InputError("its numbers are big-endian")
        starts = {name: _start(file, record) for name, record in records_by_name.items()}

        def storage(identity: Any) -> Storage:
            dtype, key, numel = _identity(identity)
            record = records_by_name[f"data/{key}"]
            if numel * dtype.itemsize > record.file_size:
                raise ValueError(f"a storage of {numel} numbers in {record.file_size} bytes")
            return Storage(path, dtype, numel, starts[record.filename.partition("/")[2]])

        with archive.open(records_by_name["data.pkl"]) as stream:
            return safe_pickle.load(stream, _Script(_calls(size)) if code else _calls(size), storage)


def _check(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Raises BadZipFile unless the record's bytes have its checksum."""
    with archive.open(record) as content:
        while content.read(1 << 20):
            pass


def _start(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Offset of a record's data: behind its local header, whose name and extra field have lengths of their own."""
    file.seek(record.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return record.header_offset + 30 + name + extra


def _pickled(source: Path | bytes, stream: IO[bytes], size: int) -> Any:
    """A pickle, or torch's older format: five pickles, then the storages one after another."""
    first = safe_pickle.load(stream, _calls(size))
    if first != MAGIC:
        return first
    return _legacy(source, stream, size)


def _legacy(source: Path | bytes, stream: IO[bytes], size: int) -> Any:
    """torch's older format behind the magic number: the tree, then the storages."""
    if safe_pickle.load(stream, {}) != PROTOCOL:
        raise ValueError("an unknown version")
    if safe_pickle.load(stream, {}).get("little_endian") is not True:
        raise InputError("its numbers are big-endian")
    waiting: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        dtype, key, numel = _identity(identity)
        if numel * dtype.itemsize > size:
            raise ValueError(f"a storage of {numel} numbers in a file of {size} bytes")
        known = waiting.setdefault(key, Storage(source, dtype, numel))
        if (known.dtype, known.numel) != (dtype, numel):
            raise ValueError("two storages of one name")
        return known

    tree = safe_pickle.load(stream, _calls(size, nested=isinstance(source, bytes)), storage)
    for key in safe_pickle.load(stream, {}):
        known = waiting[key]
        (numel,) = struct.unpack("<q", stream.read(8))
        known.start = stream.tell()
        length = known.numel * known.dtype.itemsize
        if numel != known.numel or known.start + length > size:
            raise ValueError("a storage is cut short")
        stream.seek(known.start + length)
    return tree


def _identity(identity: Any) -> tuple[Any, str, int]:
    """(dtype, key, numbers) of ("storage", type, key, device, numbers[, view])."""
    kind, storage_class, key, _, numel, *view = identity
    if kind != "storage" or not isinstance(storage_class, Name) or not isinstance(key, str) or view not in ([], [None]):
        raise ValueError("a reference that is no storage")
    if type(numel) is not int or not 0 <= numel < 2**40:
        raise ValueError("a storage of impossible size")
    return tensor_table.STORAGES[storage_class.path.removeprefix("torch.")], key, numel


def _calls(size: int, nested: bool = False) -> dict[str, Any]:
    """Allow-list: every name that a file may use -> the function of ours that takes its place.

    nested: the pickle lies inside a pickle already, where no further one may lie
    """
    budget = 2 * size  # bytes that may be decoded a second time

    def spend(amount: int) -> None:
        nonlocal budget
        budget -= amount
        if budget < 0:
            raise InputError("it asks for more bytes than it has")

    def encode(text: str, code: str) -> bytes:  # how older protocols write bytes
        spend(len(text))
        if code != "latin1":
            raise ValueError("bytes of an unknown encoding")
        return text.encode(code)

    def inner(content: Any) -> Any:  # a storage inside a module's pickle: a whole file of torch's older format
        if nested or not isinstance(content, bytes):
            raise InputError("a pickle lies inside a pickle inside a pickle")
        spend(len(content))
        return _pickled_storage(content)

    def unusable(*_: Any) -> Any:
        raise ValueError("a call of a class that is only a name")

    return {
        **{f"torch.{name}": unusable for name in tensor_table.STORAGES},
        **dict.fromkeys(MAPPINGS, _mapping),
        **{name: _thing(name) for name in OBJECTS},
        "builtins.set": lambda *_: [],
        "copyreg._reconstructor": unusable,
        "_codecs.encode": encode,
        "torch._utils._rebuild_tensor": tensor_table.of_storage,
        "torch._utils._rebuild_tensor_v2": tensor_table.of_storage,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.jit._pickle.restore_type_tag": lambda value, _: value,
        **{f"torch.jit._pickle.build_{kind}list": lambda items: items for kind in ("int", "double", "bool", "tensor")},
        "torch.storage._load_from_bytes": inner,
        "torch_utils.persistence._reconstruct_persistent_obj": _module,
        "numpy.dtype": _thing("numpy.dtype"),
        "numpy.ndarray": unusable,
        "numpy._core.multiarray._reconstruct": lambda *_: Thing("numpy.ndarray"),
        "numpy._core.multiarray.scalar": lambda dtype, content: Thing("numpy.ndarray", 1, (), dtype, False, content),
        "numpy._core.numeric._frombuffer": lambda content, dtype, shape, order: Thing(
            "numpy.ndarray", 1, shape, dtype, order == "F", content
        ),
    }


class _Script(dict[str, Any]):
    """The allow-list, and the classes of an archive's own program, whose objects are data like any other."""

    def __contains__(self, path: object) -> bool:
        return super().__contains__(path) or str(path).startswith("__torch__.")

    def __missing__(self, path: str) -> Any:
        return _thing(path)


def _pickled_storage(content: bytes) -> Storage:
    stream = io.BytesIO(content)
    storage = _legacy(content, stream, len(content)) if safe_pickle.load(stream, {}) == MAGIC else None
    if not isinstance(storage, Storage):
        raise ValueError("bytes that are no storage")
    return storage


def _thing(path: str) -> Any:
    return lambda *arguments: Thing(path, *arguments)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """An empty mapping, or one of pairs, as the oldest protocols write it."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    if not all(len(pair) == 2 and isinstance(pair[0], safe_pickle.PLAIN) for pair in pairs):
        raise ValueError("entries of no mapping")
    return dict(pairs)


def _module(meta: Any) -> Thing:
    """A network of NVIDIA's: class name and state. The source code stored with them is ignored."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise ValueError("a module without a state")
    module = Thing("module", shown(meta.get("class_name")))
    module.state = meta["state"]
    return module
