"""Test images -> data/<domain>/edits/<editor>/: the first and last row of every table, and methods without a mapper."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
