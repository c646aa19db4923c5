"""Test images, denoiser, mapper, relevance -> data/<domain>/edits/<editor>/: editors that decode with diffusion."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
