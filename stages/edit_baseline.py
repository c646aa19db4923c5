"""Test people -> data/<domain>/edits/<editor>/: the frames of every table, and methods that need no mapper."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
