"""Test images, mapper, relevance -> data/<domain>/edits/<editor>/: editors that move style codes by a mapper."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
