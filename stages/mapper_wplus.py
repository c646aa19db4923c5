"""Codes in W+ -> data/<domain>/mapper_wplus.safetensors: the mapper of the same recipe in the other space."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import artefacts
from pipeline.stylespace import w_plus_layout
from stages._run import Stage, run
from stages.mapper import train


def main(stage: Stage) -> None:
    files, generator = stage.files, stage.networks.load().generator
    layout = w_plus_layout(generator.num_ws, generator.style_dim)

    def codes(split: str, sources: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        made, clips = [], []
        for source in sources:
            known = artefacts.read(files.codes, "codes", ["id", "clip"], {"source": source, "split": split})
            clips.append(known["clip"])
            made.append((fakes if source == "fake" else reals)(known["id"]))
        return torch.cat(made), torch.cat(clips)

    def fakes(ids: Tensor) -> Tensor:
        """w of all fakes, whose ids count from 0, in every row -> [N,L*D]."""
        w = artefacts.read(files.fakes, "fakes", ["w"])["w"][ids].half()
        return w.repeat(1, generator.num_ws)

    def reals(ids: Tensor) -> Tensor:
        found = artefacts.read(files.reals, "reals", ["id", "w_plus"], {"id": tuple(ids.tolist())})
        assert torch.equal(found["id"], ids)  # both artefacts keep the order of the pictures
        return found["w_plus"].half()

    train(stage, layout, codes, files.mapper_wplus)


if __name__ == "__main__":
    run(main)
