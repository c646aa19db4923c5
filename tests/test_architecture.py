"""The order of the rooms, and whether dvc.yaml names all the code that a result depends on."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline import editors
from pipeline.storage import domains

ROOT = Path(__file__).resolve().parent.parent
ORDER = (  # imports go from a room to rooms named before it only
    "kernels",
    "pipeline/runtime",
    "pipeline/portraits",
    "pipeline/storage",
    "pipeline/models",
    "pipeline",  # the method itself
    "pipeline/editors",
    "pipeline/checkpoints",
    "pipeline/evaluation",
    "pipeline/report",
    "pretrain",
    "stages",
    "deltaspace",
)
ROOMS = tuple(dict.fromkeys(room.split("/")[0] for room in ORDER))
PLUMBING = {  # cannot change a result: reads parameters, starts stages; and all of pipeline/runtime
    "pipeline/__init__.py",
    "pipeline/storage/domains.py",
    "pipeline/storage/params.py",
    "pipeline/storage/plain_yaml.py",
    "stages/_stage.py",
    *(f"pipeline/runtime/{file.name}" for file in (ROOT / "pipeline" / "runtime").glob("*.py")),
}
# modules that import by name, when asked, what stages name themselves
REGISTRIES = {"pipeline/networks.py", "pipeline/editors/__init__.py"}
NETWORKS = {  # network of a weights file -> module that runs it
    "generator": "pipeline/models/stylegan2.py",
    "clip": "pipeline/models/clip.py",
    "encoder": "pipeline/models/e4e.py",
    "identity": "pipeline/models/classifiers.py",
    "oracle": "pipeline/models/classifiers.py",
    "oracle2": "pipeline/models/classifiers.py",
    "denoiser": "pipeline/models/unet.py",
    "inception": "pipeline/models/perceptual.py",
    "lpips": "pipeline/models/perceptual.py",
}
FOLDER = "data/pretrained/${item.domain}"  # as a dependency: every network of the domain that is there
LONGEST = 400  # lines


def sources(*rooms: str) -> list[Path]:
    return sorted(file for room in rooms for file in (ROOT / room).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def file_of(module: str) -> Path | None:
    """The file of a dotted module name of this repository, or None."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_run_time(child)


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """Dotted names of all that `file` imports at run time, also inside functions; `a.b` for `from a import b`."""
    found: set[str] = set()
    package = name_of(file).removesuffix(".py").removesuffix("/__init__").split("/")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in at_run_time(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(found)


@functools.cache
def closure(file: Path) -> frozenset[str]:
    """The files of this repository whose code `file` runs; imports of plumbing and of registries are not followed."""
    seen, todo = {file}, [file]
    while todo:
        current = todo.pop()
        if name_of(current) in PLUMBING | REGISTRIES:
            continue
        for module in imports(current):
            found = file_of(module)
            if found and found not in seen and found.relative_to(ROOT).parts[0] in ROOMS:
                seen.add(found)
                todo.append(found)
    return frozenset(name_of(file) for file in seen | native_sources(seen) if has_code(file))


def has_code(file: Path) -> bool:
    """Whether a file holds more than a docstring."""
    if file.suffix != ".py":
        return True
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def native_sources(modules: set[Path]) -> set[Path]:
    """The files of kernels/csrc that `modules` compile: those of the same name, and the shared headers."""
    folder = ROOT / "kernels" / "csrc"
    found = {file for module in modules if module.parent == folder.parent for file in folder.glob(f"{module.stem}.c*")}
    return found | set(folder.glob("*.h")) if found else found


def pipeline_file() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


STAGES = list(pipeline_file())


def covered(name: str, deps: list[str]) -> bool:
    return any(name == dep or name.startswith(f"{dep.rstrip('/')}/") for dep in deps)


def room_of(name: str) -> str:
    """The room of a file, by its path from the project's root: the longest that matches."""
    return max((room for room in ORDER if name.startswith(f"{room}/")), key=len)


@pytest.mark.parametrize("file", sources(*ROOMS), ids=name_of)
def test_imports_go_to_rooms_before_it_only(file: Path) -> None:
    rank = ORDER.index(room_of(name_of(file)))
    imported = {name_of(found) for found in map(file_of, imports(file)) if found and has_code(found)}
    imported = {name for name in imported if name.split("/")[0] in ROOMS} - {"pipeline/__init__.py"}
    assert not sorted(name for name in imported if ORDER.index(room_of(name)) > rank)


def test_nothing_of_the_wheel_imports_the_benchmarks() -> None:
    importing = [file for file in sources(*ROOMS) if any(name.split(".")[0] == "benchmarks" for name in imports(file))]
    assert not list(map(name_of, importing))


@pytest.mark.parametrize("file", sources("pretrain"), ids=name_of)
def test_training_code_runs_on_a_machine_without_the_workflow_tools(file: Path) -> None:
    top = ast.Module([n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    names = {n.module if isinstance(n, ast.ImportFrom) else a.name for n in top.body for a in n.names}  # type: ignore[attr-defined]
    assert not {str(name).split(".")[0] for name in names} & {"dvc", "mlflow", "polars"}


@pytest.mark.parametrize("file", sources(*ROOMS), ids=name_of)
def test_no_file_is_two_rooms_in_one(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_stages_of_the_pipeline_are_the_files_of_the_stages_room() -> None:
    files = {file.stem for file in sources("stages") if not file.stem.startswith("_")}
    assert set(STAGES) == files


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_file_of_its_name(stage: str) -> None:
    command = pipeline_file()[stage]["cmd"].split()
    assert command[:4] == ["python", "-m", f"stages.{stage}", "${item.domain}"]
    assert f"stages/{stage}.py" in pipeline_file()[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_the_code_it_runs(stage: str) -> None:
    deps = pipeline_file()[stage]["deps"]
    needed = closure(ROOT / "stages" / f"{stage}.py") - PLUMBING
    assert not sorted(name for name in needed if not covered(name, deps)), f"missing in dvc.yaml: {stage}.deps"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_reads_weights_depends_on_the_network_that_runs_them(stage: str) -> None:
    deps = pipeline_file()[stage]["deps"]
    names = [Path(dep).stem for dep in deps if dep.startswith(f"{FOLDER}/")]
    names += [name for name in NETWORKS if name != "denoiser"] if FOLDER in deps else []
    assert set(names) <= set(NETWORKS)
    assert not names or "pipeline/networks.py" in deps
    for name in names:
        needed = closure(ROOT / NETWORKS[name]) - PLUMBING
        assert not sorted(code for code in needed if not covered(code, deps)), f"{stage} uses the {name}"


@pytest.mark.parametrize("editor", editors.names())
def test_an_edit_stage_depends_on_what_each_of_its_editors_needs(editor: str) -> None:
    module = editors.module(editor)
    deps = pipeline_file()[f"edit_{module.KIND}"]["deps"]
    made = {"denoiser": "diffusion"}
    for name in module.NEEDS:
        places = f"{FOLDER}/{name}.safetensors", f"data/${{item.domain}}/{made.get(name, name)}.safetensors"
        assert set(places) & set(deps), name


@pytest.mark.parametrize("stage", STAGES)
def test_code_that_a_stage_names_exists_and_is_named_once(stage: str) -> None:
    deps = [dep for dep in pipeline_file()[stage]["deps"] if "${" not in dep]
    assert len(deps) == len(set(deps))
    assert not [dep for dep in deps if not (ROOT / dep).exists()]


@pytest.mark.parametrize("stage", STAGES)
def test_plumbing_is_no_reason_to_run_a_stage_again(stage: str) -> None:
    assert not PLUMBING & set(pipeline_file()[stage]["deps"])


def test_every_section_of_the_parameters_belongs_to_a_stage() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert set(params) - {"domains", "editors", "channel_mask"} <= set(STAGES)
    for kind, names in params["editors"].items():
        assert set(params[f"edit_{kind}"]) >= set(names)  # an editor may stand ready without being run by default


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "domains").glob("*.yaml")))
def test_a_domain_says_everything_that_dvc_tracks_of_it(name: str) -> None:
    content = yaml.safe_load((ROOT / "domains" / f"{name}.yaml").read_text(encoding="utf-8"))
    for stage, entry in pipeline_file().items():
        tracked = [keys for part in entry.get("params", []) if isinstance(part, dict) for keys in part.values()]
        for key in (key for keys in tracked for key in keys):
            found = content
            for part in key.split("."):
                assert part in found, f"{stage} tracks {key}"
                found = found[part]


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "domains").glob("*.yaml")))
def test_weights_lie_where_the_stages_depend_on_them(name: str) -> None:
    domain = domains.load(name, ROOT)
    assert {network: domain.weights(network).path for network in NETWORKS} == {
        network: domains.default_path(name, network) for network in NETWORKS
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_its_section_of_the_parameters(stage: str) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if stage in params:
        tracked = [entry for entry in pipeline_file()[stage].get("params", []) if isinstance(entry, str)]
        assert [entry for entry in tracked if entry.split(".")[0] == stage], f"{stage} does not track its section"
