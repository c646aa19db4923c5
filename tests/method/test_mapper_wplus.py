"""Training data of the mapper in W+: every code with the CLIP embedding of its own image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.storage import artefacts
from stages import mapper_wplus

ROWS, DIM = 3, 2


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    """Six fakes and three images, with values that follow from their ids."""
    layout = artefacts.DomainPaths("tiny", tmp_path)
    w = torch.arange(6.0)[:, None] + torch.tensor([0.0, 0.5])
    artefacts.write_shard(layout.fakes / artefacts.shard_name(0), "fakes", {"id": list(range(6)), "w": w}, {})
    reals, splits = [20, 21, 22], ["train", "val", "train"]
    codes = torch.tensor(reals)[:, None] + torch.arange(ROWS * DIM) / 8
    columns = {"id": reals, "split": splits, "w_plus": codes.float(), "error": torch.zeros(3)}
    artefacts.write_shard(layout.reals / artefacts.shard_name(0), "reals", columns, {})
    for number, (source, ids, split) in enumerate(
        (("fake", list(range(6)), ["val", *["train"] * 5]), ("real", reals, splits))
    ):
        clip = torch.tensor(ids)[:, None].float().expand(-1, 4)
        columns = {"id": ids, "source": [source] * len(ids), "split": split, "s": torch.zeros(len(ids), 5).half()}
        artefacts.write_shard(layout.codes / artefacts.shard_name(number), "codes", {**columns, "clip": clip}, {})
    networks = SimpleNamespace(generator=SimpleNamespace(num_ws=ROWS, style_dim=DIM))
    return SimpleNamespace(paths=layout, networks=SimpleNamespace(load=lambda: networks))


@pytest.mark.parametrize(
    ("split", "sources", "ids"),
    [
        ("train", ("fake", "real"), [1, 2, 3, 4, 5, 20, 22]),
        ("val", ("fake", "real"), [0, 21]),
        ("train", ("real",), [20, 22]),
    ],
)
def test_every_w_plus_has_its_own_clip_embedding(
    split: str, sources: tuple[str, ...], ids: list[int], stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(mapper_wplus, "train", lambda _, layout, codes, made: given.update(layout=layout, codes=codes))
    mapper_wplus.main(stage)
    w_plus, clip = given["codes"](split, sources)
    assert clip[:, 0].tolist() == ids and given["layout"].size == ROWS * DIM
    for row, code in zip(ids, w_plus.float(), strict=True):
        expected = torch.tensor([row, row + 0.5] * ROWS) if row < 20 else row + torch.arange(ROWS * DIM) / 8
        torch.testing.assert_close(code, expected.float())
