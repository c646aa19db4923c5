"""Each in a process of its own: what is imported cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LEAN = "import sys; from pipeline.lean import lean_imports\nwith lean_imports():\n    import open_clip.model\n"


def test_open_clip_comes_without_timm_and_the_compiler_and_both_can_be_used_afterwards() -> None:
    code = """
print([name for name in ("timm", "torch._dynamo", "torch._dynamo.utils", "sympy") if name in sys.modules])
import timm, torch, torchvision
boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]])]
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), timm.__name__)
print(torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 2).shape[-1])
"""
    assert python(LEAN + code).split() == ["[]", "2.0", "timm", "2"]


def test_what_torchvision_was_imported_without_can_be_imported_afterwards() -> None:
    code = """
print([name for name in sys.modules if name.startswith(("torchvision.models.", "torchvision.datasets."))])
import torchvision.datasets, torchvision.models
print(torchvision.models.resnet18.__name__, torchvision.datasets.ImageFolder.__name__)
"""
    assert python(LEAN + code).split() == ["[]", "resnet18", "ImageFolder"]


@pytest.mark.parametrize("network", ["Inception", "Lpips"])
def test_networks_of_photographs_are_built_in_a_process_that_has_imported_nothing(network: str) -> None:
    assert python(f"from pipeline import perception\nprint(type(perception.{network}()).__name__)") == network


def test_a_use_of_the_compiler_inside_gets_the_real_one_which_stays() -> None:
    code = """
import sys, torch
from pipeline.lean import lean_imports
with lean_imports():
    print(callable(torch._dynamo.disable))
real = sys.modules["torch._dynamo"]
with lean_imports():
    import torchvision
print(sys.modules["torch._dynamo"] is real)
"""
    assert python(code).split() == ["True", "True"]
