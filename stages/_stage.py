"""Parts that every stage shares: arguments, domain, parameters, resumable work, tracking, one-line errors."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.runtime import files, processes, resumable, tracking
from pipeline.runtime.errors import InputError, nearest
from pipeline.storage import artefacts, domains, params

if TYPE_CHECKING:
    from pipeline import training
    from pipeline.networks import Networks

Section = TypeVar("Section")


class NetworkSpec(NamedTuple):
    """Networks of a domain by name, which a worker process can load."""

    domain: str
    root: Path
    device: str

    def load(self) -> Networks:
        """The networks, the same object for the same names in one process."""
        return _load(self)


@functools.cache
def _load(spec: NetworkSpec) -> Networks:
    from pipeline.networks import Networks

    return Networks(domains.load(spec.domain, spec.root), spec.root, spec.device)


@dataclass(frozen=True)
class Stage:
    """One run of a stage: `python -m stages.NAME DOMAIN [EDITOR]`."""

    name: str
    root: Path
    domain: domains.Domain
    editor: str | None = None

    @property
    def paths(self) -> artefacts.DomainPaths:
        """Inputs and outputs of the domain's stages."""
        return artefacts.DomainPaths(self.domain, self.root)

    @functools.cached_property
    def networks(self) -> NetworkSpec:
        """The domain's networks on the device of this run."""
        return NetworkSpec(self.domain.name, self.root, processes.device())

    @property
    def processes(self) -> int:
        """Number of worker processes for jobs that run networks; one where there is a GPU."""
        return processes.count() if self.networks.device == "cpu" else 1

    @property
    def label(self) -> str:
        """Name in MLflow and of the resumable work, such as "edit_latent-deltaedit_g"."""
        return f"{self.name}-{self.editor}" if self.editor else self.name

    def params(self, cls: type[Section], name: str | None = None) -> Section:
        """Section `name` of params.yaml, by default the stage's, with the domain's defaults for null."""
        return params.section(cls, self.root, name or self.name, domain=self.domain)

    def meta(self, section: Any, *networks: str) -> dict[str, Any]:
        """Header of the outputs: domain, effective parameters, digests of the files of `networks`."""
        digests = {name: files.digest(self.networks.load().path(name)) for name in networks}
        return {"domain": self.domain.name, "params": _plain(section), "networks": digests}

    def work(self, section: Any) -> AbstractContextManager[resumable.Work]:
        """Resumable work, which a killed run with equal inputs, code and parameters began."""
        fingerprint = {"params": _plain(section), "domain": asdict(self.domain), "inputs": self._inputs()}
        return resumable.open(self.label, self.domain.name, fingerprint, self.root)

    def tracked(self, section: Any) -> AbstractContextManager[tracking.Run]:
        """MLflow run of this stage with the effective parameters; it does not enter any output."""
        timing = self.paths.timing(self.label)
        return tracking.stage(self.label, self.domain.name, _plain(section), self.root, timing)

    def save_curve(self, work: resumable.Work, curve: training.Curve, piece: str = "curve") -> None:
        """Write a curve as a CSV piece of the work, which DVC plots."""
        columns = list(curve.rows[0]) if curve.rows else ["step"]
        lines = [",".join(columns), *(",".join(f"{row[name]:.6g}" for name in columns) for row in curve.rows)]
        files.write_bytes(work.path(piece), ("\n".join(lines) + "\n").encode())
        work.mark(piece)

    def log_curve(self, run: tracking.Run, curve: training.Curve) -> None:
        """Log every row of a curve."""
        for row in curve.rows:
            self.log(run, {name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def log(self, run: tracking.Run, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log metrics, leaving out those that are None."""
        numbers: dict[str, Any] = {name: value for name, value in metrics.items() if value is not None}
        run.log(step, **numbers)

    def _inputs(self) -> dict[str, str]:
        """Digests of the files that dvc.yaml lists as dependencies of this stage, code included."""
        import yaml

        entry = yaml.safe_load((self.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][self.name]
        names = {"${item.domain}": self.domain.name, "${item.editor}": self.editor or ""}
        digests: dict[str, str] = {}
        for dep in entry["deps"]:
            for name, value in names.items():
                dep = dep.replace(name, value)
            paths = [self.root / dep]
            if not dep.startswith("data/") and paths[0].is_dir():  # a folder of code also has Python's caches
                paths = [p for p in sorted(paths[0].rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
            digests |= {path.relative_to(self.root).as_posix(): resumable.digest_of(path) for path in paths}
        return digests


def run(main: Callable[[Stage], None]) -> None:
    """Run the stage that this process was started for; bad input gives one line and exit code 2."""
    name = Path(sys.argv[0]).stem
    processes.one_thread()  # results of one thread do not depend on the number of cores
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
