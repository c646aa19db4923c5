"""`make repro`: DVC runs the stages, then MLflow is told. Its slow import happens while DVC looks at the files."""

from __future__ import annotations

import subprocess
import sys

from pipeline.runtime import tracking


def main(arguments: list[str]) -> int:
    """`dvc repro` with `arguments`; its exit code."""
    running = subprocess.Popen(["dvc", "repro", *arguments])
    try:
        tracking.warm()
    finally:
        code = running.wait()
    if code == 0:
        print(tracking.finish_repro())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
