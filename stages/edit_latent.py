"""Test people, mapper, relevance -> data/<domain>/edits/<editor>/: editors that move style codes as was learnt."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
