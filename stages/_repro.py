"""`make repro`: run `dvc repro`, then log its numbers to MLflow, whose slow import overlaps with DVC's checks."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.runtime import tracking
from pipeline.storage import params


def main(arguments: list[str]) -> int:
    """Run `dvc repro` with `arguments`; return its exit code."""
    root, run_id = params.root(), tracking.new_run_id()
    running = subprocess.Popen(["dvc", "repro", *arguments], env={**os.environ, tracking.RUN_ID: run_id})
    try:
        tracking.warm_up(root)
    finally:
        code = running.wait()
    if code == 0:
        print(tracking.finish_repro(root, run_id))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
