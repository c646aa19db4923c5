"""Compilation of native code on first use.

The native code of an operation is csrc/<operation>.cpp and csrc/<operation>.cu, compiled by ninja against libtorch's
stable ABI. The library is cached in a folder named after everything that it depends on, so a stale one is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

CACHE = "DELTASPACE_KERNELS_CACHE"  # environment variable: the only folder for compiled code, in place of the usual two
CSRC = Path(__file__).resolve().parent / "csrc"
SUFFIX = {"cpp": ".cpp", "cuda": ".cu"}
_HEADER = {"cpp": "cpu.h", "cuda": "gpu.h"}
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # libraries load in torch 2.11 and later
_CPP_FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", _STABLE_ABI]
CUDA_FLAGS = ["-O3", "-DUSE_CUDA", _STABLE_ABI]


class KernelUnavailable(RuntimeError):
    """An implementation requested by name cannot run; the message is the reason."""


def source_file(operation: str, impl: str) -> Path:
    """Path of an operation's native source, whether it exists or not."""
    return CSRC / f"{operation}{SUFFIX[impl]}"


def library(operation: str, impl: str) -> Path:
    """Path of the compiled library of an implementation, compiled if needed. Raises KernelUnavailable."""
    source = source_file(operation, impl)
    flags = _CPP_FLAGS if impl == "cpp" else [*CUDA_FLAGS, f"arch={architectures()}"]
    digest = hashlib.sha256("\0".join([*flags, _processor()]).encode())
    for file in (source, CSRC / _HEADER[impl]):
        digest.update(file.read_bytes())
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    name = f"{torch.__version__}-{python}-{operation}-{impl}-{digest.hexdigest()[:16]}"
    file = f"deltaspace_{operation}_{impl}.so"
    for folder in _cache_folders():
        if (folder / name / file).exists():
            return folder / name / file
    return _build(_writable(name), file.removesuffix(".so"), source)


def _cache_folders() -> list[Path]:
    """Folders for compiled code, in the order they are searched; queued experiments share the main checkout's."""
    if chosen := os.environ.get(CACHE):
        return [Path(chosen)]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folders = [Path(home) / "deltaspace" / "kernels"]
    root = CSRC.parent.parent
    if not (root / "pyproject.toml").exists() and not (root / "dvc.yaml").exists():
        return folders
    for index in range(len(root.parts) - 3):
        if root.parts[index : index + 3] == (".dvc", "tmp", "exps"):
            root = Path(*root.parts[:index])
            break
    return [root / ".cache" / "kernels", *folders]


def _writable(name: str) -> Path:
    for folder in _cache_folders():
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / name):
                return folder / name
        except OSError:
            continue
    raise KernelUnavailable(f"compiled code cannot be written to {' or '.join(map(str, _cache_folders()))}")


def _build(folder: Path, name: str, source: Path) -> Path:
    """Compile in folder/build and move the finished library into folder.

    A file lock, which the system frees when its process dies, admits one process at a time. The leftovers of a killed
    build are removed, among them torch's own lock file, on which the next build would wait for ever.
    """
    from filelock import FileLock

    cuda = source.suffix == ".cu"
    finished, work = folder / f"{name}.so", folder / "build"
    with FileLock(folder / "lock"):
        if finished.exists():
            return finished
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with _cpp_extension(cuda) as extension:
            extension.load(
                name,
                [str(source)],
                extra_cflags=None if cuda else _CPP_FLAGS,
                extra_cuda_cflags=CUDA_FLAGS,
                build_directory=str(work),
                with_cuda=cuda,
                is_python_module=False,
            )
        (built,) = work.glob("*.so")  # torch numbers the names when one process builds twice
        os.replace(built, finished)
        shutil.rmtree(work, ignore_errors=True)
    return finished


@contextmanager
def _cpp_extension(cuda: bool) -> Iterator[Any]:
    """torch.utils.cpp_extension, with the environment variables that it reads. Raises KernelUnavailable."""
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
            os.environ["CUDA_HOME"], os.environ["TORCH_CUDA_ARCH_LIST"] = str(cuda_home()), architectures()
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
    """Folder of the CUDA toolkit: CUDA_HOME, CUDA_PATH, that of nvcc, or the usual one. Raises KernelUnavailable."""
    nvcc = shutil.which("nvcc")
    chosen = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parent.parent]
    for home in [*filter(None, chosen), "/usr/local/cuda"]:  # nvcc on PATH may be a wrapper
        if (Path(home) / "bin" / "nvcc").exists() and (Path(home) / "include" / "cuda_runtime.h").exists():
            return Path(home)
    raise KernelUnavailable("no CUDA toolkit: nvcc and its headers were not found, set CUDA_HOME")


def architectures() -> str:
    """Value of TORCH_CUDA_ARCH_LIST: as set, else of this machine's device, else Hopper's."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return chosen
    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "9.0"


def _processor() -> str:
    """Identity of the processor, on which -march=native depends."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"
