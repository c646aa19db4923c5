"""Codes in W+ -> data/<domain>/mapper_wplus.safetensors: the mapper of the same recipe in the other space."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.stylespace import w_plus_layout
from pipeline.storage import artefacts
from stages._stage import Stage, run
from stages.mapper import train


def main(stage: Stage) -> None:
    files, generator = stage.files, stage.networks.load().generator
    layout = w_plus_layout(generator.num_ws, generator.style_dim)

    def codes(split: str, sources: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        known = [artefacts.read(files.codes, "codes", ["id", "clip"], {"source": s, "split": split}) for s in sources]
        clip = torch.cat([part["clip"] for part in known])
        w_plus = torch.empty(len(clip), generator.num_ws, generator.style_dim, dtype=torch.float16)
        for source, part, rows in zip(sources, known, w_plus.split([len(part["id"]) for part in known]), strict=True):
            (fakes if source == "fake" else reals)(part["id"], rows)
        return w_plus.flatten(1), clip

    def fakes(ids: Tensor, rows: Tensor) -> None:
        """Fill rows [N,L,D] with the w of fakes: every row of theirs is the same."""
        found = artefacts.read(files.fakes, "fakes", ["id", "w"])
        assert torch.equal(found["id"][ids], ids)  # their ids count from 0
        rows[:] = found["w"][ids, None]

    def reals(ids: Tensor, rows: Tensor) -> None:
        found = artefacts.read(files.reals, "reals", ["id", "w_plus"], {"id": tuple(ids.tolist())})
        assert torch.equal(found["id"], ids)  # both artefacts keep the order of the pictures
        rows.flatten(1)[:] = found["w_plus"]

    train(stage, layout, codes, files.mapper_wplus)


if __name__ == "__main__":
    run(main)
