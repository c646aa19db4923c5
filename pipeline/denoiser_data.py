"""Training data of the denoiser: the images of a split beside the codes that it is conditioned on."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from pipeline import denoiser_training, sampling
from pipeline.denoiser_training import Batches
from pipeline.models.stylespace import Space
from pipeline.networks import Networks
from pipeline.storage import artefacts

CHUNK = 1024  # images that are decoded at a time


def load(networks: Networks, split: str, space: Space, most: int | None = None) -> tuple[Batches, int]:
    """Read images and codes of a split; returns batches of them and their number.

    space: of the codes, "s" or "w_plus".
    most: number of rows that are read, from the first on; None: all.

    Decoded images stay in a temporary file, so that memory does not grow with their number.
    """
    paths, size, finished = networks.paths, networks.domain.resolution, 0
    ids = tuple(artefacts.read(paths.images, "images", ["id"], {"split": split})["id"].tolist()[:most])
    with tempfile.TemporaryFile() as file:  # without a name: it is gone with the process, however that ends
        images = torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=(len(ids), 3, size, size)))
    for part in artefacts.iterate(paths.images, "images", ["image"], CHUNK, {"id": ids}):
        decoded = sampling.decode_uint8(part["image"])
        images[finished : finished + len(decoded)] = decoded
        finished += len(decoded)
    if space == "s":
        codes = artefacts.read(paths.codes, "codes", ["s"], {"source": "real", "id": ids})["s"]
    else:
        codes = artefacts.read(paths.reals, "reals", ["w_plus"], {"id": ids})["w_plus"]
    stats = sampling.style_stats(networks, space)
    return denoiser_training.in_memory(images, codes, *(part.cpu() for part in stats)), len(codes)
