"""Which implementation of an operation runs, and how native ones come to be: the one place that knows this machine.

A native implementation is one file of csrc/, compiled by ninja on first use against libtorch's stable ABI. The result
lies in a folder named after everything it depends on, so that nothing stale is ever loaded; whatever goes wrong on
the way becomes a reason, and the operation runs its PyTorch reference.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "ref", "cpp", "cuda")
OPERATIONS = {  # operation -> its module, and the name of its files in csrc/
    "bias_act": "bias_act",
    "upfirdn2d": "upfirdn2d",
    "box_resample": "box_resample",
    "relevance_mask": "relevance",
    "modulated_epilogue": "epilogue",
    "epilogue_difference": "epilogue_difference",
    "channel_perturb": "channel_perturb",
    "relevance_accumulate": "accumulate",
}
SWITCH = "DELTASPACE_KERNELS"  # "ref": no native code
CACHE = "DELTASPACE_KERNELS_CACHE"  # the only folder for compiled code, instead of the usual two
NO_SOURCE = {  # by choice, so nothing that `auto` has to tell
    "cpp": "there is no C++ version of it: PyTorch's own operations do on a CPU",
    "cuda": "there is no CUDA version of it",
}

CSRC = Path(__file__).resolve().parent / "csrc"
_PLAIN: set[str] = set()  # operations that `auto` leaves to PyTorch for the time
_SUFFIX = {"cpp": ".cpp", "cuda": ".cu"}
_HEADER = {"cpp": "cpu.h", "cuda": "gpu.h"}
_NATIVE = {"cpu": "cpp", "cuda": "cuda"}  # device -> the native implementation for it
_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_SLOW = {"cpp": torch.float16}  # correct, but gcc makes no vectors of it: 10 to 20 times slower than PyTorch
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11 and later load what is built
_CPP_FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", _STABLE_ABI]
_CUDA_FLAGS = ["-O3", "-DUSE_CUDA", _STABLE_ABI]
_LONGEST_REASON = 240  # characters
_REASONS: dict[tuple[str, str], str] = {}
_WARNED: set[str] = set()
_LOADING = threading.RLock()
_LIBRARY = torch.library.Library("deltaspace", "FRAGMENT")


class KernelUnavailable(RuntimeError):
    """An implementation was asked for by name and is not there; the message is the reason."""


def register(schema: str, fake: Callable[..., Any], backward: Any = None, setup: Any = None) -> None:
    """Define an operation of the namespace `deltaspace`: its schema, the shapes of its results, its gradient."""
    name = f"deltaspace::{schema.split('(')[0]}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup, lib=_LIBRARY)


def dense(x: Tensor) -> Tensor:
    """x in one of the two layouts that native code reads: contiguous, or channels_last for images [B,C,H,W]."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """An empty [B,C,height,width] with the type and the layout of x, as native code returns it."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=layout)


@contextmanager
def as_with(impl: str) -> Iterator[None]:
    """Within it `auto` means plain PyTorch for operations that have no source of `impl`, on whatever device."""
    plain = {name for name, stem in OPERATIONS.items() if not (CSRC / f"{stem}{_SUFFIX[impl]}").exists()}
    _PLAIN.update(plain)
    try:
        yield
    finally:
        _PLAIN.difference_update(plain)


def choose(operation: str, impl: str, *tensors: Tensor) -> str:
    """The implementation to run for `tensors`: `auto` takes the fastest that is there, a name is obeyed or refused.

    Raises ValueError for an unknown name, tensors on different devices or a dtype that native code does not know,
    KernelUnavailable with the reason. The first call may compile (seconds, once per machine).
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation '{impl}': one of {', '.join(IMPLEMENTATIONS)}")
    device, dtype = tensors[0].device, tensors[0].dtype
    for tensor in tensors:
        if tensor.device != device:
            devices = {str(other.device) for other in tensors}
            raise ValueError(f"tensors on several devices: {', '.join(sorted(devices))}")
    native = _NATIVE.get(device.type, "ref")
    if impl == "auto":
        known = native != "ref" and operation not in _PLAIN and dtype in _DTYPES and dtype != _SLOW.get(native)
        return _automatic(operation, native) if known else "ref"
    if impl == "ref":
        return impl
    if reason := unavailable(operation, impl):
        raise KernelUnavailable(reason)
    if impl != native:
        raise KernelUnavailable(f"{impl} code cannot run on tensors that lie on {device.type}")
    if dtype not in _DTYPES:
        raise ValueError(f"{impl} code of {operation} does not take {dtype}")
    return impl


def describe() -> dict[str, tuple[str, str]]:
    """Operation -> (implementation that `auto` takes on this machine's default device, why); compiles what it needs."""
    impl = "cuda" if torch.cuda.is_available() else "cpp"
    reasons = {name: unavailable(name, impl) for name in OPERATIONS}
    return {
        name: ("ref", reason) if reason else (impl, f"compiled from kernels/csrc/{OPERATIONS[name]}{_SUFFIX[impl]}")
        for name, reason in reasons.items()
    }


def unavailable(operation: str, impl: str) -> str:
    """Why `impl` cannot run here; an empty string when it can, and then it is loaded."""
    if impl == "ref":
        return ""
    with _LOADING:
        if (operation, impl) not in _REASONS:
            _REASONS[operation, impl] = _load(operation, impl)
        return _REASONS[operation, impl]


def _automatic(operation: str, native: str) -> str:
    reason = unavailable(operation, native)
    if reason and reason not in _WARNED and reason != NO_SOURCE[native] and not _switched_off():
        _WARNED.add(reason)
        warnings.warn(f"native code is not used, which costs speed only: {reason}", stacklevel=4)
    return "ref" if reason else native


# the compiler takes the answer as a constant instead of looking inside
_automatic._dynamo_marked_constant = True  # type: ignore[attr-defined]
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _switched_off() -> bool:
    return os.environ.get(SWITCH) == "ref"


def _load(operation: str, impl: str) -> str:
    """Build if need be and load; the reason if that fails."""
    if _switched_off():
        return f"switched off by {SWITCH}=ref"
    if not (CSRC / f"{OPERATIONS[operation]}{_SUFFIX[impl]}").exists():
        return NO_SOURCE[impl]
    if impl == "cuda" and not torch.cuda.is_available():
        return "no CUDA device on this machine"
    try:
        torch.ops.load_library(str(library(operation, impl)))
    except KernelUnavailable as error:
        return str(error)
    except Exception as error:  # whatever a tool chain can come up with must not stop the user
        return _reason(error)
    return ""


def library(operation: str, impl: str) -> Path:
    """The compiled file of an implementation, built if it is not there. Raises KernelUnavailable."""
    stem = OPERATIONS[operation]
    source = CSRC / f"{stem}{_SUFFIX[impl]}"
    flags = _CPP_FLAGS if impl == "cpp" else [*_CUDA_FLAGS, f"arch={_architectures()}"]
    digest = hashlib.sha256("\0".join([*flags, _processor()]).encode())
    for file in (source, CSRC / _HEADER[impl]):
        digest.update(file.read_bytes())
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    name = f"{torch.__version__}-{python}-{stem}-{impl}-{digest.hexdigest()[:16]}"
    file = f"deltaspace_{stem}_{impl}.so"
    for place in _places():
        if (place / name / file).exists():
            return place / name / file
    return _build(_writable(name), file.removesuffix(".so"), source)


def _places() -> list[Path]:
    """Folders for compiled code, in the order they are tried; queued experiments share the main checkout's."""
    if chosen := os.environ.get(CACHE):
        return [Path(chosen)]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [Path(home) / "deltaspace" / "kernels"]
    root = CSRC.parent.parent
    if not (root / "pyproject.toml").exists() and not (root / "dvc.yaml").exists():
        return places
    for index in range(len(root.parts) - 3):
        if root.parts[index : index + 3] == (".dvc", "tmp", "exps"):
            root = Path(*root.parts[:index])
            break
    return [root / ".cache" / "kernels", *places]


def _writable(name: str) -> Path:
    for place in _places():
        try:
            (place / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place / name):
                return place / name
        except OSError:
            continue
    raise KernelUnavailable(f"compiled code cannot be written to {' or '.join(map(str, _places()))}")


def _build(folder: Path, name: str, source: Path) -> Path:
    """Compile into folder/build and move the library out when it is whole.

    One process at a time, by a lock that the system frees when its holder dies; what a killed build left is removed,
    torch's own lock file included, which would make the next one wait for ever.
    """
    from filelock import FileLock

    cuda = source.suffix == ".cu"
    finished, work = folder / f"{name}.so", folder / "build"
    with FileLock(folder / "lock"):
        if finished.exists():
            return finished
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with _tools(cuda) as extension:
            extension.load(
                name,
                [str(source)],
                extra_cflags=None if cuda else _CPP_FLAGS,
                extra_cuda_cflags=_CUDA_FLAGS,
                build_directory=str(work),
                with_cuda=cuda,
                is_python_module=False,
            )
        (built,) = work.glob("*.so")  # torch numbers the names of what one process builds again
        os.replace(built, finished)
        shutil.rmtree(work, ignore_errors=True)
    return finished


@contextmanager
def _tools(cuda: bool) -> Iterator[Any]:
    """torch.utils.cpp_extension with what it looks for in the environment. Raises KernelUnavailable."""
    import logging

    compiler = os.environ.get("CXX", "c++")
    before = {name: os.environ.get(name) for name in ("PATH", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST")}
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    try:
        os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{before['PATH'] or os.defpath}"  # ninja's
        if shutil.which(compiler) is None:
            raise KernelUnavailable(f"no C++ compiler: `{compiler}` is not on PATH")
        if shutil.which("ninja") is None:
            raise KernelUnavailable("no ninja on PATH: run `make install`")
        if cuda:
            os.environ["CUDA_HOME"], os.environ["TORCH_CUDA_ARCH_LIST"] = str(cuda_home()), _architectures()
        logger.setLevel(logging.ERROR)
        from torch.utils import cpp_extension

        if cuda:
            cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"]
        yield cpp_extension
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def cuda_home() -> Path:
    """The CUDA toolkit: CUDA_HOME, or beside nvcc, or the usual place. Raises KernelUnavailable."""
    nvcc = shutil.which("nvcc")
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parent.parent]
    for home in [*filter(None, named), "/usr/local/cuda"]:  # nvcc on PATH may be a mere wrapper
        if (Path(home) / "bin" / "nvcc").exists() and (Path(home) / "include" / "cuda_runtime.h").exists():
            return Path(home)
    raise KernelUnavailable("no CUDA toolkit: nvcc and its headers were not found, set CUDA_HOME")


def _architectures() -> str:
    """TORCH_CUDA_ARCH_LIST: as set, or of the device here, or Hopper's."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return chosen
    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "9.0"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"


def _reason(error: Exception) -> str:
    """The line of a tool chain's output that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    found = next((line for line in lines if "error:" in line.lower()), lines[0])
    return f"{type(error).__name__}: {found}"[:_LONGEST_REASON]
