"""Compilation and caching of native code, and fallback to the references."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import build, dispatch
from kernels.bias_act import bias_act
from kernels.epilogue_difference import epilogue_difference

ROOT = Path(__file__).resolve().parents[2]
TINY = "#include <regex>\nint nothing(const char* x) { return std::regex_match(x, std::regex(x)); }\n"  # seconds
USE = "import torch; from kernels.bias_act import bias_act; "
USE += "print(bias_act(torch.ones(2, 3), torch.ones(3), gain=1.0).sum().item())"
WITH_CUDA = dispatch.with_source("cuda")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget which libraries this process could load before."""
    monkeypatch.setattr(dispatch, "_REASONS", {})
    monkeypatch.setattr(dispatch, "_WARNED", set())
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    yield


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """csrc of its own with one small source, and an empty cache, on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "project" / "kernels" / "csrc"
    folder.mkdir(parents=True)
    (folder / "bias_act.cpp").write_text(TINY)
    shutil.copy(build.CSRC / "cpu.h", folder)
    monkeypatch.setattr(build, "CSRC", folder)
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    return folder


def needs_compiler() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler on this machine")


def check_fallback_warns_once(match: str) -> None:
    """`auto` runs the reference, warns once and `describe` has the reason; "cpp" is refused with the same reason."""
    x, bias = torch.randn(2, 3), torch.randn(3)
    with pytest.warns(UserWarning, match=match) as said:
        found = bias_act(x, bias)
    assert len(said) == 1 and torch.equal(found, bias_act(x, bias, impl="ref"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bias_act(x, bias)
    assert dispatch.describe()["bias_act"] == ("ref", dispatch.unavailable("bias_act", "cpp"))
    with pytest.raises(build.KernelUnavailable, match=match):
        bias_act(x, bias, impl="cpp")


# ---------------------------------------------------------------- fallback to the reference


def test_without_a_compiler_the_reference_runs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_fallback_warns_once("no C\\+\\+ compiler: `no-such-compiler` is not on PATH")


def test_without_a_compiler_an_operation_with_cpu_code_only_runs_its_reference(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "epilogue_difference.cpp").write_text(TINY)
    monkeypatch.setenv("CXX", "no-such-compiler")
    x, base = torch.randn(4, 3, 2, 5), torch.randn(2, 3, 2, 5)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler") as said:
        found = epilogue_difference(x, base)
    assert len(said) == 1 and torch.equal(found, epilogue_difference(x, base, impl="ref"))


def test_without_ninja_the_reference_runs(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "c++").write_text("#!/bin/sh\n")
    (tools / "c++").chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    check_fallback_warns_once("no ninja on PATH")


def test_without_a_writable_cache_the_reference_runs(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE, str(tmp_path / "file" / "cache"))
    check_fallback_warns_once("compiled code cannot be written to .*cache")


def test_a_source_that_does_not_compile_runs_the_reference_and_names_the_error(copied: Path) -> None:
    needs_compiler()
    (copied / "bias_act.cpp").write_text("#error this cannot work\n")
    check_fallback_warns_once("this cannot work")


def test_native_code_can_be_switched_off_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.SWITCH, "ref")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bias_act(torch.randn(2, 3), torch.randn(3))
    assert set(dispatch.describe().values()) == {("ref", "switched off by DELTASPACE_KERNELS=ref")}
    with pytest.raises(build.KernelUnavailable, match="switched off"):
        bias_act(torch.randn(2, 3), torch.randn(3), impl="cpp")


def test_an_operation_without_cuda_code_runs_its_reference_on_a_gpu_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(build, "library", lambda *_: pytest.fail("compiled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch._automatic("epilogue_difference", "cuda") == "ref"
    assert dispatch.unavailable("epilogue_difference", "cuda") == dispatch.NO_SOURCE.format(impl="cuda")


def test_cuda_code_is_not_compiled_on_a_machine_without_a_gpu(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("compiled"))
    (copied / "bias_act.cu").write_text("")
    with pytest.raises(build.KernelUnavailable, match="no CUDA device on this machine"):
        bias_act(torch.randn(2, 3), torch.randn(3), impl="cuda")


def test_dtypes_without_native_code_run_the_reference_and_are_refused_for_a_named_implementation() -> None:
    x, bias = torch.randn(2, 3).to(torch.complex64), torch.randn(3)
    assert dispatch.choose("bias_act", "auto", x, bias) == "ref"
    assert dispatch.choose("bias_act", "auto", torch.randn(2, 3).half(), bias) == "ref"  # slower than PyTorch's
    if not dispatch.unavailable("bias_act", "cpp"):
        with pytest.raises(ValueError, match="does not take torch"):
            dispatch.choose("bias_act", "cpp", x, bias)


# ---------------------------------------------------------------- the cache of compiled code


def test_compiled_code_goes_to_the_checkouts_cache_and_else_to_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(build.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    users = tmp_path / "home" / "deltaspace" / "kernels"
    for project in (tmp_path / "main", tmp_path / "main" / ".dvc" / "tmp" / "exps" / "one"):
        (project / "kernels" / "csrc").mkdir(parents=True)
        (project / "pyproject.toml").write_text("")
        monkeypatch.setattr(build, "CSRC", project / "kernels" / "csrc")
        assert build._cache_folders() == [tmp_path / "main" / ".cache" / "kernels", users]
    (tmp_path / "main" / ".cache").write_text("a file where the folder would be")
    assert build._writable("name") == users / "name"
    installed = tmp_path / "site-packages" / "kernels" / "csrc"
    monkeypatch.setattr(build, "CSRC", installed)
    assert build._cache_folders() == [users]


def test_a_change_of_source_flags_processor_or_torch_compiles_anew(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_build", lambda folder, name, source: folder / name)
    found = {build.library("bias_act", "cpp")}
    (copied / "bias_act.cpp").write_text(TINY + "// another\n")
    found.add(build.library("bias_act", "cpp"))
    (copied / "cpu.h").write_text("// another")
    found.add(build.library("bias_act", "cpp"))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    found.add(build.library("bias_act", "cpp"))
    monkeypatch.setattr(build, "_CPP_FLAGS", ["-O1"])
    found.add(build.library("bias_act", "cpp"))
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    found.add(build.library("bias_act", "cpp"))
    assert len(found) == 6


def test_a_killed_build_is_cleaned_up_and_two_processes_share_one_build(copied: Path) -> None:
    needs_compiler()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = f"import pathlib; from kernels import build; build.CSRC = pathlib.Path({str(copied)!r}); "
    code += "print(build.library('bias_act', 'cpp'))"
    command = [sys.executable, "-c", code]
    cache = Path(os.environ[build.CACHE])
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.time() + 60
    while not list(cache.glob("*/build/build.ninja")) and time.time() < until:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (work,) = cache.glob("*/build")
    (work / "lock").touch()  # torch up to 2.13 leaves it behind and then waits for it
    assert not list(cache.glob("*/*.so"))
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=120)[0].strip() for process in both}
    (path,) = outputs
    assert Path(path).is_file() and not work.exists()


def test_loading_compiled_code_imports_no_build_tools() -> None:
    if reason := dispatch.unavailable("bias_act", "cpp"):
        pytest.skip(reason)
    code = f"{USE}; import sys; print([n for n in sys.modules if 'cpp_extension' in n or n == 'torch._dynamo'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["12.0", "[]"]


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), build.CACHE: str(tmp_path / "cache")}
    code = "import " + ", ".join(f"kernels.{module}" for module in dispatch.OPERATIONS)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def test_compiled_code_loads_from_a_read_only_folder(copied: Path) -> None:
    needs_compiler()
    path = build.library("bias_act", "cpp")
    for folder in (path.parent, path.parent.parent):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert build.library("bias_act", "cpp") == path
    finally:
        for folder in (path.parent.parent, path.parent):
            folder.chmod(stat.S_IRWXU)


# ---------------------------------------------------------------- CUDA without a GPU


@pytest.fixture(scope="session")
def cuda_libraries() -> dict[str, Path]:
    """Every CUDA source compiled and linked, once per session (and kept in the usual cache)."""
    try:
        build.cuda_home()
    except build.KernelUnavailable as reason:
        pytest.skip(str(reason))
    return {operation: build.library(operation, "cuda") for operation in WITH_CUDA}


def test_all_operations_have_cpu_code_and_all_but_two_cuda_code() -> None:
    assert set(WITH_CUDA) == set(dispatch.OPERATIONS) - {"epilogue_difference", "channel_perturb"}
    assert dispatch.with_source("cpp") == dispatch.OPERATIONS


@pytest.mark.parametrize("operation", WITH_CUDA)
def test_cuda_code_compiles_loads_and_registers(operation: str, cuda_libraries: dict[str, Path]) -> None:
    torch.ops.load_library(str(cuda_libraries[operation]))
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deltaspace::{operation}", "CUDA")


@pytest.mark.parametrize("operation", WITH_CUDA)
def test_cuda_code_is_compiled_for_hopper(operation: str, cuda_libraries: dict[str, Path]) -> None:
    if torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        pytest.skip("compiled for another architecture by choice")
    import triton

    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(found) if found.exists() else shutil.which("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump on this machine")
    listed = subprocess.run([tool, "-lelf", cuda_libraries[operation]], capture_output=True, text=True, check=True)
    assert "sm_90.cubin" in listed.stdout
