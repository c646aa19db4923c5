"""Codes in W+ -> data/<domain>/mapper_wplus.safetensors: a mapper of W+, trained with the same settings."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.stylespace import w_plus_layout
from pipeline.storage import artefacts
from stages._stage import Stage, run
from stages.mapper import train


def main(stage: Stage) -> None:
    """Train the mapper of w_plus on the rows whose s the mapper of s is trained on."""
    paths, generator = stage.paths, stage.networks.load().generator

    def codes(split: str, sources: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        columns = ["id", "clip"]
        tables = [artefacts.read(paths.codes, "codes", columns, {"source": s, "split": split}) for s in sources]
        clip = torch.cat([table["clip"] for table in tables])
        w_plus = torch.empty(len(clip), generator.num_ws, generator.style_dim, dtype=torch.float16)
        parts = w_plus.split([len(table["id"]) for table in tables])
        for source, table, rows in zip(sources, tables, parts, strict=True):
            (fakes if source == "fake" else reals)(table["id"], rows)
        return w_plus.flatten(1), clip

    def fakes(ids: Tensor, rows: Tensor) -> None:
        """Fill rows [N,L,D] with the w of fakes, repeated."""
        table = artefacts.read(paths.fakes, "fakes", ["id", "w"])
        assert torch.equal(table["id"][ids], ids)  # ids count from 0
        rows[:] = table["w"][ids, None]

    def reals(ids: Tensor, rows: Tensor) -> None:
        """Fill rows [N,L,D] with the w_plus of inversions."""
        table = artefacts.read(paths.reals, "reals", ["id", "w_plus"], {"id": tuple(ids.tolist())})
        assert torch.equal(table["id"], ids)  # both artefacts are in the order of the images
        rows.flatten(1)[:] = table["w_plus"]

    train(stage, w_plus_layout(generator.num_ws, generator.style_dim), codes, paths.mapper_wplus)


if __name__ == "__main__":
    run(main)
