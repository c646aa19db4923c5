"""Tables keep what was written, bit for bit; truncated, foreign and mixed ones are refused by name."""

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from full_disk import full_after
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts
from pipeline.storage.artefacts import SCHEMAS, DomainPaths

S, E = 7, 5
META = {"domain": "tiny", "params": {"seed": 1}, "networks": {"clip": "abc"}}


def codes(start: int, rows: int) -> dict:
    generator = torch.Generator().manual_seed(start)
    ids = torch.arange(start, start + rows)
    return {
        "id": ids,
        "source": ["fake"] * rows,
        "split": [artefacts.fake_split(int(row)) for row in ids],
        "s": torch.randn(rows, S, generator=generator),
        "clip": torch.randn(rows, E, generator=generator),
    }


def edits(rows: int, **changes) -> dict:
    columns = {
        "id": list(range(rows)),
        "prompt": [f"prompt {row}" for row in range(rows)],
        "strength": [0.5] * rows,
        "image": [bytes([row]) for row in range(rows)],
        "s": None,
        "mask": None,
        "evaluations": [1] * rows,
    }
    return columns | changes


@pytest.fixture
def folder(tmp_path):
    """Codes in two shards, 100 and 37 rows."""
    for index, (start, rows) in enumerate([(0, 100), (100, 37)]):
        artefacts.write_shard(tmp_path / "codes" / artefacts.shard_name(index), "codes", codes(start, rows), META)
    return tmp_path / "codes"


def test_codes_come_back_bit_for_bit_with_s_in_half_precision(folder):
    found = artefacts.read(folder, "codes")
    assert found["s"].dtype == torch.float16 and found["clip"].dtype == torch.float32
    assert torch.equal(found["id"], torch.arange(137))
    parts = codes(0, 100), codes(100, 37)
    assert torch.equal(found["s"], torch.cat([part["s"] for part in parts]).half())
    assert torch.equal(found["clip"], torch.cat([part["clip"] for part in parts]))
    assert found["source"] == ["fake"] * 137
    found["s"].mul_(2)  # it is the caller's own memory


def test_rows_are_chosen_by_value_or_values(folder):
    val = artefacts.read(folder, "codes", ["id", "s"], {"split": "val"})
    assert val["id"].tolist() == [0, 50, 100] and set(val) == {"id", "s"}
    assert torch.equal(val["s"], artefacts.read(folder, "codes", ["s"])["s"][[0, 50, 100]])
    assert artefacts.count(folder, "codes", {"split": ("val", "train")}) == 137 == artefacts.count(folder, "codes")
    assert artefacts.read(folder, "codes", ["id"], {"id": range(99, 102)})["id"].tolist() == [99, 100, 101]
    assert artefacts.count(folder, "codes", {"split": "val", "id": 50}) == 1


def test_no_matching_row_gives_empty_tensors_of_the_right_shape(folder):
    found = artefacts.read(folder, "codes", where={"source": "real"})
    assert found["s"].shape == (0, S) and found["s"].dtype == torch.float16
    assert found["id"].shape == (0,) and found["split"] == []
    assert list(artefacts.iterate(folder, "codes", ["s"], 8, {"source": "real"})) == []


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), batch=st.integers(1, 60), val=st.booleans())
def test_parts_have_the_requested_size_and_concatenate_to_the_table(tmp_path_factory, sizes, batch, val):
    folder = tmp_path_factory.mktemp("table")
    for index, rows in enumerate(sizes):
        artefacts.write_shard(folder / artefacts.shard_name(index), "codes", codes(sum(sizes[:index]), rows), META)
    where = {"split": "val"} if val else None
    whole = artefacts.read(folder, "codes", where=where)
    parts = list(artefacts.iterate(folder, "codes", None, batch, where))
    assert all(len(part["id"]) == batch for part in parts[:-1]) and all(0 < len(part["id"]) <= batch for part in parts)
    for name in ("id", "s", "clip"):
        assert torch.equal(torch.cat([part[name] for part in parts]) if parts else whole[name][:0], whole[name])
    assert [split for part in parts for split in part["split"]] == whole["split"]


def test_equal_content_gives_equal_bytes(tmp_path):
    artefacts.write_shard(tmp_path / "a", "codes", codes(3, 50), META)
    again = {
        name: values.numpy() if isinstance(values, torch.Tensor) else values for name, values in codes(3, 50).items()
    }
    artefacts.write_shard(tmp_path / "b", "codes", dict(reversed(again.items())), dict(reversed(META.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_polars_and_pyarrow_read_the_lists_as_they_are(folder):
    frame = pl.read_parquet(folder / "*.parquet")
    assert frame.schema["s"] == pl.Array(pl.Float16, S) and frame.schema["clip"] == pl.Array(pl.Float32, E)
    expected = artefacts.read(folder, "codes")
    assert np.array_equal(frame["s"].to_numpy(), expected["s"].numpy())
    column = pq.read_metadata(folder / artefacts.shard_name(0)).row_group(0).column(3)
    assert column.path_in_schema == "s.list.element" and column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert artefacts.table(folder, ["id", "split"]).shape == (137, 2)


def test_the_metadata_comes_back(folder):
    assert artefacts.metadata(folder, "codes") == META


def test_a_nullable_list_column_is_none_as_a_whole_and_other_nulls_are_single(tmp_path):
    artefacts.write_shard(tmp_path / "edits.parquet", "edits", edits(3, mask=[b"m", None, b"n"]), META)
    found = artefacts.read(tmp_path / "edits.parquet", "edits")
    assert found["s"] is None and found["mask"] == [b"m", None, b"n"]
    assert found["image"] == [b"\0", b"\1", b"\2"] and found["strength"].dtype == torch.float32
    assert found["evaluations"].dtype == torch.int32
    (part,) = artefacts.iterate(tmp_path, "edits")
    assert part["s"] is None and part["prompt"] == ["prompt 0", "prompt 1", "prompt 2"]
    artefacts.write_shard(tmp_path / "edits.parquet", "edits", edits(3, s=torch.ones(3, S)), META)
    assert artefacts.read(tmp_path, "edits")["s"].shape == (3, S)


@pytest.mark.parametrize(
    "changes",
    [
        {"s": torch.ones(2, S)},
        {"image": None},
        {"s": torch.ones(3)},
        {"s": torch.full((3, S), 1e6)},
        {"more": [1, 2, 3]},
    ],
)
def test_columns_that_do_not_fit_the_schema_are_not_written(tmp_path, changes):
    with pytest.raises(ValueError):
        artefacts.write_shard(tmp_path / "edits.parquet", "edits", edits(3, **changes), META)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -300])
def test_a_shard_cut_short_is_refused_by_name(folder, keep):
    shard = folder / artefacts.shard_name(1)
    shard.write_bytes(shard.read_bytes()[:keep])
    for reading in (
        lambda: artefacts.read(folder, "codes"),
        lambda: list(artefacts.iterate(folder, "codes")),
        lambda: artefacts.count(folder, "codes"),
    ):
        with pytest.raises(InputError, match=r"shard-00001.parquet .*run `dvc repro`") as caught:
            reading()
        assert "\n" not in str(caught.value)


def test_damage_inside_a_shard_is_refused_by_name(folder):
    shard = folder / artefacts.shard_name(0)
    content = bytearray(shard.read_bytes())
    content[4:1200] = bytes(1196)
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00000.parquet is damaged"):
        artefacts.read(folder, "codes", ["s", "source", "split"])


def test_another_table_is_refused_with_both_names(folder, tmp_path):
    with pytest.raises(InputError, match=r"shard-00000.parquet holds codes, not reals"):
        artefacts.read(folder, "reals")
    pl.DataFrame({"id": [1], "w": [1.0]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: column w is double, but fakes has float32 list there"):
        artefacts.read(tmp_path / "a.parquet", "fakes")
    pl.DataFrame({"number": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet has the columns number, but fakes has id, w"):
        artefacts.read(tmp_path / "a.parquet", "fakes")


def test_shards_of_two_runs_do_not_mix(folder):
    other = folder / artefacts.shard_name(2)
    artefacts.write_shard(other, "codes", codes(137, 10), META | {"params": {"seed": 2}})
    with pytest.raises(InputError, match=r"shard-00002.parquet comes from another run than shard-00000.parquet"):
        artefacts.read(folder, "codes")
    artefacts.write_shard(other, "codes", codes(137, 10) | {"s": torch.ones(10, S + 1)}, META)
    with pytest.raises(InputError, match=r"shard-00002.parquet has other sizes"):
        artefacts.count(folder, "codes")


def test_missing_tables_name_the_command_that_creates_them(tmp_path):
    with pytest.raises(InputError, match=r"codes is missing: run `dvc repro cache@tiny`"):
        artefacts.read(tmp_path / "codes", "codes", hint="run `dvc repro cache@tiny`")
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes/.hidden.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match="holds no Parquet file"):
        artefacts.read(tmp_path / "codes", "codes")


def test_mistyped_columns_and_schemas_get_the_nearest_name(folder):
    with pytest.raises(ValueError, match=r"codes has no column 'clp' \(did you mean 'clip'"):
        artefacts.read(folder, "codes", ["clp"])
    with pytest.raises(ValueError, match=r"unknown schema 'code' \(did you mean 'codes'"):
        artefacts.read(folder, "code")


def test_polars_tables_have_stable_bytes_and_are_complete_or_absent(tmp_path):
    frame = pl.DataFrame({"id": [1, 2], "name": ["a", "ü"], "value": [0.5, None], "on": [True, False]})
    artefacts.write_table(tmp_path / "a.parquet", frame, META)
    artefacts.write_table(tmp_path / "b.parquet", frame.clone(), META)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert artefacts.table(tmp_path / "a.parquet").equals(frame)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"b.parquet cannot be read as a table"):
        artefacts.table(tmp_path / "b.parquet")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "fakes" / artefacts.shard_name(0)
    columns = {"id": torch.arange(5000), "w": torch.randn(5000, 40)}
    with full_after(100_000), pytest.raises(InputError, match=rf"cannot write {path}: ") as caught:
        artefacts.write_shard(path, "fakes", columns, {})
    assert "\n" not in str(caught.value) and list(path.parent.iterdir()) == []


def test_memory_while_iterating_does_not_grow_with_the_table(tmp_path):
    import psutil

    rows, held = 4096, psutil.Process()
    for index in range(24):  # 100 MB once unpacked
        columns = {"id": torch.arange(rows), "w": torch.full((rows, 256), 1.0 * index)}
        artefacts.write_shard(tmp_path / artefacts.shard_name(index), "fakes", columns, {})
    memory = [held.memory_info().rss for _ in artefacts.iterate(tmp_path, "fakes", ["w"], 512)]
    assert len(memory) == 24 * rows // 512
    assert max(memory) - memory[16] < 40_000_000


def test_every_path_of_a_domain_lies_under_its_own_folders(tmp_path):
    layout = DomainPaths("tiny", tmp_path)
    paths = [path for path in vars(layout).values() if path not in ("tiny", tmp_path)]
    paths += [layout.edits("deltaedit_g"), layout.timing("mapper"), layout.curve("mapper")]
    for path in paths:
        assert {"data", "reports"} & set(path.relative_to(tmp_path).parts) and "tiny" in path.parts
    assert len(set(paths)) == len(paths)


def test_every_fiftieth_fake_is_for_validation_and_shard_names_sort_as_numbers():
    assert [row for row in range(200) if artefacts.fake_split(row) == "val"] == [0, 50, 100, 150]
    names = [artefacts.shard_name(index) for index in (0, 9, 10, 99, 100, 12345)]
    assert names == sorted(names)
    assert {"split" for columns in SCHEMAS.values() for column in columns if column.name == "split"} == {"split"}
