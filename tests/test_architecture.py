"""The rooms and their arrows: who may import whom, and whether dvc.yaml names all the code a result depends on."""

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
ROOMS = ("kernels", "pipeline", "pretrain", "stages")  # imports go from the right to the left only
PLUMBING = {  # reads parameters, writes files whole, resumes, spreads over processes, tells: changes no result
    "pipeline/__init__.py",
    "pipeline/storage/domains.py",
    "pipeline/runtime/files.py",
    "pipeline/storage/params.py",
    "pipeline/runtime/progress.py",
    "pipeline/runtime/tracking.py",
    "pipeline/values.py",
    "pipeline/runtime/resumable.py",
    "pipeline/runtime/processes.py",
    "stages/_stage.py",
}
REGISTRIES = {"pipeline/networks.py", "pipeline/editors/__init__.py"}  # import, when asked, what deps name themselves
NETWORKS = {  # a weights file as input means the module that runs it
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
FOLDER = "data/pretrained/${item.domain}"  # as a dep: all that judge or make a picture, as far as they are there
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
    return frozenset(name_of(found) for found in seen | native_sources(seen) if found.stat().st_size)


def native_sources(modules: set[Path]) -> set[Path]:
    """The files of kernels/csrc that `modules` compile: those of the same name, and the headers that all share."""
    folder = ROOT / "kernels" / "csrc"
    found = {file for module in modules if module.parent == folder.parent for file in folder.glob(f"{module.stem}.c*")}
    return found | set(folder.glob("*.h")) if found else found


def pipeline_file() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


STAGES = list(pipeline_file())


def covered(name: str, deps: list[str]) -> bool:
    return any(name == dep or name.startswith(f"{dep.rstrip('/')}/") for dep in deps)


@pytest.mark.parametrize("file", sources(*ROOMS), ids=name_of)
def test_imports_never_look_upwards(file: Path) -> None:
    rank = ROOMS.index(file.relative_to(ROOT).parts[0])
    rooms = {module.split(".")[0] for module in imports(file)}
    assert not [room for room in ROOMS[rank + 1 :] if room in rooms], f"{name_of(file)} imports a room above it"


@pytest.mark.parametrize("file", sources("pretrain"), ids=name_of)
def test_training_code_runs_on_a_machine_without_the_workflow_tools(file: Path) -> None:
    top = ast.Module([n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    names = {n.module if isinstance(n, ast.ImportFrom) else a.name for n in top.body for a in n.names}  # type: ignore[attr-defined]
    assert not {str(name).split(".")[0] for name in names} & {"dvc", "mlflow", "polars"}


@pytest.mark.parametrize("file", sources(*ROOMS), ids=name_of)
def test_no_file_is_two_rooms_in_one(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_stages_of_the_pipeline_are_the_files_of_the_stages_room() -> None:
    files = {file.stem for file in sources("stages") if not file.stem.startswith("_")} - {"app"}
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
    assert set(params) - {"domains", "editors"} <= set(STAGES)
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
