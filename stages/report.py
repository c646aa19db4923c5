"""Everything the other stages wrote -> reports/<domain>/index.html: one self-contained page."""

from __future__ import annotations

from pipeline.report import page
from stages._stage import Stage, run


def main(stage: Stage) -> None:
    """Write the page, and log it."""
    with stage.tracked({}) as tracked:
        tracked.figure("report", page.write(stage.domain, stage.root))


if __name__ == "__main__":
    run(main)
