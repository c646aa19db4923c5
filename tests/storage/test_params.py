"""params.yaml becomes typed values, and every mistake in it is one line with section.key and advice."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.errors import InputError
from pipeline.runtime.files import main_checkout
from pipeline.storage import params
from pipeline.storage.domains import NETWORKS, Domain, Weights, default_path

GOOD = "mapper: {lr: 1e-3, steps: 5, kind: code, dims: [1, 2], pair: [3, 7], rows: null, word: no}"


@dataclass(frozen=True)
class Params:
    lr: float
    steps: int
    kind: Literal["paper", "code"]
    dims: tuple[int, ...] = ()
    pair: tuple[int, int] = (1, 2)
    rows: int | None = None
    word: str = ""
    lr_decay: float = 0.5

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps is negative: give 0 or more")


DOMAIN = Domain("cat", 64, "cat", **{name: Weights(default_path("cat", name)) for name in NETWORKS})


def read(folder: Path, text: str, **options) -> Params:
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return params.section(Params, folder, "mapper", **options)


def test_values_arrive_typed_and_as_dvc_reads_them(tmp_path):
    assert read(tmp_path, GOOD) == Params(0.001, 5, "code", (1, 2), (3, 7), None, "no")


def test_whole_numbers_serve_as_floats_but_not_the_reverse(tmp_path):
    assert read(tmp_path, GOOD.replace("1e-3", "2")).lr == 2.0


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("lr:", "lrr:", r"mapper.lrr is unknown \(did you mean 'lr'\?\)"),
        ("steps: 5, ", "", r"mapper.steps is missing: add it"),
        ("steps: 5", "fade: 5", r"mapper.fade is now lr_decay: rename it"),
        ("steps: 5", "amplify: 5", r"mapper.amplify no longer exists: remove it"),
        ("5", "5.5", r"mapper.steps is 5.5: a whole number is expected"),
        ("5", "true", r"mapper.steps is True: a whole number is expected"),
        ("5", "'5'", r"mapper.steps is '5': a whole number is expected"),
        ("5", "-1", r"mapper: steps is negative: give 0 or more"),
        ("1e-3", ".nan", r"mapper.lr is nan: a finite number is expected"),
        ("1e-3", "fast", r"mapper.lr is 'fast': a finite number is expected"),
        ("1e-3", "null", r"mapper.lr has no value in params.yaml: add it"),
        ("code", "cod", r"mapper.kind is 'cod' \(did you mean 'code'\?\): one of paper, code is expected"),
        ("[3, 7]", "[3]", r"mapper.pair has 1 entries: more are expected"),
        ("[3, 7]", "7", r"mapper.pair is 7: a list is expected"),
        ("[3, 7]", "[3, 7, 9]", r"mapper.pair has 3 entries: 2 are expected"),
        ("[1, 2]", "[1, x]", r"mapper.dims\[1\] is 'x': a whole number is expected"),
        ("word: no", "word: 1", r"mapper.word is 1: text is expected"),
    ],
)
def test_each_mistake_is_named_with_what_is_expected(tmp_path, old, new, error):
    with pytest.raises(InputError, match=error) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("maper: {}", r"no section 'mapper' \(did you mean 'maper'\?\)"),
        ("mapper: 3", "mapper is 3: a mapping"),
        ("- 1", "a mapping of keys to values is expected"),
        ("", "no section 'mapper'"),
        ("mapper: {lr: 1, lr: 2}", "line 1: the key 'lr' stands twice"),
        ("mapper: &a {lr: 1}\nother: *a", "line 1: anchors and aliases"),
        ("mapper: !!python/object/apply:os.system ['exit 3']", "line 1: the tag"),
        ("mapper: !custom 1", "line 1: the tag !custom"),
        ("mapper:\n  lr: [", "is not plain YAML in line"),
        ("[" * 3000, "nested too deeply"),
        ("editors: {latent: [straightforward]}", "straightforward is now clip_target"),
        ("edit: {latent: {}}\neditors: {latent: []}\nedit_latent: {straightforward: {}}", "is now clip_target"),
        ("? [a]\n: 1", "a key must be a word"),
    ],
)
def test_yaml_other_than_a_plain_mapping_is_refused(tmp_path, text, error):
    with pytest.raises(InputError, match=error) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"params.yaml is missing"):
        params.load_yaml(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"mapper: \xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        params.load_yaml(tmp_path)


def test_null_takes_the_domains_default_and_params_win_over_it(tmp_path):
    domain = replace(DOMAIN, defaults={"mapper": {"steps": 7, "rows": 9, "lr": 0.5}})
    found = read(tmp_path, GOOD.replace("5", "null"), domain=domain)
    assert (found.steps, found.rows, found.lr) == (7, 9, 0.001)
    with pytest.raises(InputError, match=r"mapper.steps has no value in params.yaml and the domain cat"):
        read(tmp_path, GOOD.replace("5", "null"), domain=DOMAIN)


def test_a_default_of_the_wrong_type_is_refused_like_any_value(tmp_path):
    domain = replace(DOMAIN, defaults={"mapper": {"steps": "many"}})
    with pytest.raises(InputError, match=r"mapper.steps is 'many'"):
        read(tmp_path, GOOD.replace("5", "null"), domain=domain)


def test_overrides_win_over_all_others(tmp_path):
    domain = replace(DOMAIN, defaults={"mapper": {"steps": 7, "rows": 9}})
    found = read(tmp_path, GOOD, overrides={"lr": 2, "rows": None}, domain=domain)
    assert (found.lr, found.rows) == (2.0, None)
    with pytest.raises(InputError, match=r"mapper.stps is unknown \(did you mean 'steps'"):
        read(tmp_path, GOOD, overrides={"stps": 1})


def test_every_setting_has_an_origin(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "mapper: {lr: 1, steps: null, kind: code, word: null}\nall: {pair: [2, 3], lr: 2}"
    )
    domain = replace(DOMAIN, defaults={"mapper": {"steps": 7, "lr": 0.5}, "all": {"dims": [4]}})

    @dataclass(frozen=True)
    class Shared(Params):
        SHARED: ClassVar[str] = "all"

    resolved = params.resolve(Shared, tmp_path, "mapper", {"rows": 3}, domain=domain)
    assert resolved.values == Shared(1.0, 7, "code", (4,), (2, 3), 3, "")
    assert params.describe_origins(resolved.values, resolved.origins, {"strength": [0.5]}) == [
        "lr = 1.0 (params.yaml)",
        "steps = 7 (domains/cat.yaml)",
        "kind = 'code' (params.yaml)",
        "dims = (4,) (domains/cat.yaml)",
        "pair = (2, 3) (params.yaml, all)",
        "rows = 3 (command line)",
        "word = '' (default)",
        "lr_decay = 0.5 (default)",
        "strength = [0.5] (command line)",
    ]


def test_old_names_in_a_domains_defaults_are_refused_with_the_new_one(tmp_path):
    domain = replace(DOMAIN, defaults={"mapper": {"fade": 0.1}})
    with pytest.raises(InputError, match=r"domains/cat.yaml: defaults.mapper.fade is now lr_decay: rename it"):
        read(tmp_path, GOOD, domain=domain)


def test_a_section_may_lie_inside_another(tmp_path):
    (tmp_path / "params.yaml").write_text("edit: {" + GOOD + "}")
    domain = replace(DOMAIN, defaults={"edit": {"mapper": {"rows": 4}}})
    assert params.section(Params, tmp_path, "edit.mapper", domain=domain).rows == 4
    with pytest.raises(InputError, match=r"no section 'edit.maper' \(did you mean 'mapper'"):
        params.section(Params, tmp_path, "edit.maper")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_back(tmp_path_factory, number):
    found = read(tmp_path_factory.mktemp("numbers"), GOOD.replace("1e-3", repr(number)))
    assert found.lr == number


def test_the_root_is_set_by_the_environment_or_found_above_or_the_codes_own(tmp_path, monkeypatch):
    monkeypatch.delenv("DELTASPACE_ROOT", raising=False)
    project = tmp_path / "project"
    (project / "domains").mkdir(parents=True)
    (project / "params.yaml").write_text("")
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "params.yaml").write_text("")  # some other tool's
    monkeypatch.chdir(inner)
    assert params.root() == project
    monkeypatch.chdir(tmp_path)
    assert params.root() == Path(params.__file__).resolve().parents[2]
    monkeypatch.setenv("DELTASPACE_ROOT", str(project))
    assert params.root() == project
    monkeypatch.setenv("DELTASPACE_ROOT", str(tmp_path / "none"))
    with pytest.raises(InputError, match="DELTASPACE_ROOT"):
        params.root()


def test_a_queued_experiment_belongs_to_the_main_checkout():
    assert main_checkout(Path("/p/.dvc/tmp/exps/tmpabc/sub")) == Path("/p")
    assert main_checkout(Path("/p/q")) == Path("/p/q")


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("mapper: {steps: 5}\n")
    params.read_mapping(path)["mapper"]["steps"] = 6
    assert params.read_mapping(path) == {"mapper": {"steps": 5}}
    path.write_text("mapper: {steps: 7}\n")
    assert params.read_mapping(path) == {"mapper": {"steps": 7}}
