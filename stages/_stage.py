"""What every stage shares: arguments, domain, parameters, unfinished work, tracking, and one line for bad input."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.runtime import files, processes, resumable, tracking
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, domains, params

if TYPE_CHECKING:
    from pipeline import training
    from pipeline.networks import Backbones

Section = TypeVar("Section")


class Networks(NamedTuple):
    """A domain's networks by name, so that a worker process can load its own."""

    domain: str
    root: Path
    device: str

    def load(self) -> Backbones:
        """The same object for the same names in one process; each network is read when it is first used."""
        return _backbones(self)


@functools.cache
def _backbones(networks: Networks) -> Backbones:
    from pipeline.networks import Backbones

    return Backbones(domains.load(networks.domain, networks.root), networks.root, networks.device)


@dataclass(frozen=True)
class Stage:
    """One run of a stage: `python -m stages.NAME DOMAIN [EDITOR]`."""

    name: str
    root: Path
    domain: domains.Domain
    editor: str | None = None

    @property
    def files(self) -> artefacts.Layout:
        return artefacts.Layout(self.domain, self.root)

    @functools.cached_property
    def networks(self) -> Networks:
        return Networks(self.domain.name, self.root, processes.device())

    @property
    def processes(self) -> int:
        """Worker processes for jobs that run networks: one where there is a GPU."""
        return processes.count() if self.networks.device == "cpu" else 1

    def params(self, cls: type[Section]) -> Section:
        """The stage's section of params.yaml, with the domain's defaults where it says null."""
        return params.section(cls, self.root, self.name, domain=self.domain)

    def meta(self, section: Any, *networks: str) -> dict[str, Any]:
        """What stands in the header of the outputs: domain, effective parameters, fingerprints of `networks`."""
        made = {name: files.digest(self.networks.load().path(name)) for name in networks}
        return {"domain": self.domain.name, "params": _plain(section), "networks": made}

    def work(self, section: Any) -> AbstractContextManager[resumable.Unit]:
        """The stage's unfinished work, which a killed run with equal inputs, code and parameters left."""
        made_from = {"params": _plain(section), "domain": asdict(self.domain), "inputs": self._inputs()}
        return resumable.open(self.label, self.domain.name, made_from)

    @contextmanager
    def tracked(self, section: Any) -> Iterator[tracking.Run]:
        """An MLflow run of this stage with the effective parameters; nothing of it enters an output."""
        with tracking.stage(self.label, self.domain.name, _plain(section)) as run:
            yield run

    def save_curve(self, unit: resumable.Unit, curve: training.Curve, piece: str = "curve") -> None:
        """A piece of the unit: a training's rows as CSV, which DVC plots."""
        columns = list(curve.rows[0]) if curve.rows else ["step"]
        lines = [",".join(columns), *(",".join(f"{row[name]:.6g}" for name in columns) for row in curve.rows)]
        files.write_bytes(unit.path(piece), ("\n".join(lines) + "\n").encode())
        unit.mark(piece)

    def log_curve(self, run: tracking.Run, curve: training.Curve) -> None:
        for row in curve.rows:
            self.log(run, {name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def log(self, run: tracking.Run, found: Mapping[str, float | None], step: int = 0) -> None:
        """The numbers among `found`."""
        numbers: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
        run.log(step, **numbers)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.editor}" if self.editor else self.name

    def _inputs(self) -> dict[str, str]:
        """Digest of everything dvc.yaml says this stage depends on, code included."""
        import yaml

        entry = yaml.safe_load((self.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][self.name]
        filled = {"${item.domain}": self.domain.name, "${item.editor}": self.editor or ""}
        found: dict[str, str] = {}
        for dep in entry["deps"]:
            for name, value in filled.items():
                dep = dep.replace(name, value)
            code = [] if dep.startswith("data/") else sorted((self.root / dep).glob("**/*.py"))
            paths = code or [self.root / dep]  # a folder of code also holds what Python compiled
            found |= {path.relative_to(self.root).as_posix(): resumable.digest_of(path) for path in paths}
        return found


def run(main: Callable[[Stage], None]) -> None:
    """Run the stage this process was started for; bad input is one line and exit code 2."""
    name = Path(sys.argv[0]).stem
    processes.one_thread()  # what one thread computes does not depend on the number of cores
    processes.keep_memory()
    try:
        main(_stage(name, sys.argv[1:]))
    except InputError as error:
        if os.environ.get("DELTASPACE_DEBUG") == "1":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def _stage(name: str, arguments: list[str]) -> Stage:
    root, editor = params.root(), None
    edits = name.startswith("edit_")
    if len(arguments) != 1 + edits:
        raise InputError(f"usage: python -m stages.{name} DOMAIN{' EDITOR' if edits else ''}")
    if edits:
        editor = arguments[1]
        known = params.load_yaml(root)["editors"][name.removeprefix("edit_")]
        if editor not in known:
            raise InputError(f"params.yaml names no editor '{editor}'{nearest(editor, known)} for {name}")
    return Stage(name, root, domains.load(arguments[0], root), editor)


def _plain(section: Any) -> dict[str, Any]:
    return section if isinstance(section, dict) else asdict(section)
