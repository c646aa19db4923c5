"""bfloat16 only where the hardware supports it: asking for it is never slower."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.runtime import precision


@pytest.fixture
def spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "halves", lambda kind: False)


@pytest.mark.usefixtures("spared")
def test_without_hardware_support_networks_multiply_in_float32() -> None:
    network, x = nn.Linear(7, 5), torch.randn(3, 7)
    with precision.lowered("cpu"):
        found = network(x)
    assert torch.equal(found, network(x)) and precision.low("cpu") == torch.float32


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("wanted", [True, False])
def test_with_hardware_support_it_is_used_when_wanted(wanted: bool) -> None:
    network, expected = nn.Linear(7, 5), torch.bfloat16 if wanted else torch.float32
    with precision.lowered("cpu", wanted):
        assert network(torch.randn(3, 7)).dtype == expected
    assert precision.low("cpu", wanted) == expected and network.weight.dtype == torch.float32


def test_the_answer_for_this_machine_is_pytorchs() -> None:
    assert precision.halves("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not precision.halves("cuda") or torch.cuda.is_available()
    assert not precision.halves("meta")


def test_a_pytorch_without_fast_convolutions_has_none_in_bfloat16_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision.halves.__wrapped__("cpu")


@pytest.mark.usefixtures("spared")
def test_a_float16_autocast_around_it_is_off_inside() -> None:
    with torch.autocast("cpu", torch.float16), precision.lowered("cpu"):
        assert nn.Linear(7, 5)(torch.randn(3, 7)).dtype == torch.float32
