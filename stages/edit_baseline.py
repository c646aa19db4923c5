"""Test images -> data/<domain>/edits/<editor>/: baselines, and the two references that frame every table."""

from __future__ import annotations

from stages._edit import edit
from stages._stage import run

if __name__ == "__main__":
    run(edit)
