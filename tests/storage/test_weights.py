"""Weights files: equal content gives equal bytes, broken ones are refused in one line, none is half-written."""

import subprocess
import sys

import pytest
import torch
from full_disk import full_after

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import weights

TENSORS = {
    "b": torch.linspace(-3, 3, 12).view(3, 4),
    "a": torch.arange(5),
    "flag": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "one": torch.tensor(2.5),
}
META = {"dims": [3, 4], "domain": "portraits", "name": "ü"}


def test_floats_are_stored_as_half_and_come_back_as_float32_while_integers_stay(tmp_path):
    path = tmp_path / "deep/net.safetensors"
    weights.save(path, TENSORS, META)
    tensors, meta = weights.load(path)
    assert meta == META and weights.read_meta(path) == META
    assert set(tensors) == set(TENSORS)
    assert tensors["b"].dtype == torch.float32 and tensors["a"].dtype == torch.int64
    assert tensors["flag"].dtype == torch.bool and torch.equal(tensors["flag"], TENSORS["flag"])
    assert torch.equal(tensors["b"], TENSORS["b"].half().float())
    assert tensors["empty"].shape == (0, 3) and tensors["one"].shape == ()


def test_without_half_every_bit_survives(tmp_path):
    weights.save(tmp_path / "net", TENSORS, {}, half=False)
    assert torch.equal(weights.load(tmp_path / "net")[0]["b"], TENSORS["b"])


def test_numbers_beyond_float16_stay_float32(tmp_path):
    large = torch.tensor([1e6, 1.0])
    weights.save(tmp_path / "net", {"large": large}, {})
    assert torch.equal(weights.load(tmp_path / "net")[0]["large"], large)


def test_equal_content_gives_equal_bytes_whatever_the_order_and_layout(tmp_path):
    weights.save(tmp_path / "one", TENSORS, META)
    turned = {name: tensor.clone() for name, tensor in reversed(TENSORS.items())}
    turned["b"] = turned["b"].t().contiguous().t()
    weights.save(tmp_path / "two", turned, dict(reversed(META.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tied_tensors_are_stored_separately(tmp_path):
    shared = torch.ones(3)
    weights.save(tmp_path / "net", {"a": shared, "b": shared, "c": shared[:2]}, {}, half=False)
    assert torch.equal(weights.load(tmp_path / "net")[0]["c"], torch.ones(2))


@pytest.mark.parametrize("cut", [0, 4, 8, 50, -3])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, cut):
    path = tmp_path / "net.safetensors"
    weights.save(path, TENSORS, META)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"net.safetensors is broken or cut short.*run `x`") as caught:
        weights.load(path, hint="run `x`")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00." * 20, b"PK\x03\x04" + b"0" * 100, b"hello"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "net").write_bytes(content)
    with pytest.raises(InputError, match="broken or cut short"):
        weights.load(tmp_path / "net")


def test_missing_weights_name_the_command_that_creates_them(tmp_path):
    with pytest.raises(InputError, match=r"is missing: run `deltaspace pretrain cat encoder`"):
        weights.load(tmp_path / "encoder.safetensors", hint="run `deltaspace pretrain cat encoder`")
    with pytest.raises(InputError, match="is a folder"):
        weights.load(tmp_path)


def test_foreign_safetensors_have_no_meta(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "net", metadata={"format": "pt"})
    assert weights.load(tmp_path / "net")[1] == {}


def test_the_digest_follows_the_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = weights.digest(path)
    path.write_bytes(b"two")
    assert weights.digest(path) != first
    path.write_bytes(b"one")
    assert weights.digest(path) == first
    with pytest.raises(InputError, match="cannot read"):
        weights.digest(tmp_path / "none")


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path):
    path = tmp_path / "net.safetensors"
    weights.save(path, {"a": torch.ones(2)}, {"old": True})
    with full_after(20_000), pytest.raises(InputError, match=rf"cannot write {path}: File too large") as caught:
        weights.save(path, {"a": torch.ones(100_000)}, {})
    assert "\n" not in str(caught.value)
    assert weights.read_meta(path) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*data/net"):
        weights.save(tmp_path / "data/net", TENSORS, {})
    with pytest.raises(InputError, match="is a folder where a file"):
        files.write_bytes(tmp_path, b"x")


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    leftover, other = tmp_path / f".net.{killed.pid}.partial", tmp_path / ".net.1.partial"
    leftover.write_bytes(b"half")
    other.write_bytes(b"a living process writes this")
    weights.save(tmp_path / "net", TENSORS, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [other.name, "net"]


def test_a_failing_writer_keeps_the_previous_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "file") as partial:
        partial.write_bytes(b"new")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
