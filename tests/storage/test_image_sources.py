"""Folders, zips and Parquet files of photographs: images in their order, and everything skipped with its reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.runtime.errors import InputError
from pipeline.storage import image_sources, images

ROOT = Path(__file__).resolve().parents[2]


def encoded(shade: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((14, 11, 3), shade, np.uint8)).save(content, "PNG")
    return content.getvalue()


def shades(path: Path) -> list[int]:
    """The shade of every picture that is listed at `path`, in order."""
    found = image_sources.list_images(path)
    pictures = [images.read_rgb(image_sources.open_member(path, member))[0] for member in found.members]
    return [int(np.asarray(picture).mean()) for picture in pictures]


def skipped(path: Path) -> dict[str, str]:
    return dict(image_sources.list_images(path).skipped)


def written(path: Path, members: dict[str, bytes]) -> Path:
    """A zip file with these members, in this order."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# ---------------------------------------------------------------- folders


def test_a_folder_is_read_in_the_order_of_its_names_with_all_below_it(tmp_path: Path) -> None:
    names = ["b.png", "a/z.PNG", "a/deep/er/y.png", "ü 顔.png", "c.JPEG.png"]
    for shade, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(shade * 20))
    assert shades(tmp_path) == [40, 20, 0, 80, 60]
    assert [member.name for member in image_sources.list_images(tmp_path).members] == sorted(names)


def test_other_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(9))
    for name in ("notes.txt", "README", ".hidden.png", "__MACOSX/a.png", ".git/x.png", "more.zip", "photo.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to("missing")
    (tmp_path / "elsewhere").symlink_to(tmp_path / ".git")
    assert skipped(tmp_path) == {
        "notes.txt": "no picture by its name (.txt)",
        "README": "no picture by its name",
        "photo.heic": "no picture by its name (.heic)",
        "more.zip": "an archive beside pictures",
        ".hidden.png": "hidden",
        "__MACOSX": "hidden",
        ".git": "hidden",
        "pipe.png": "no plain file",
        "nowhere.png": "no plain file",
        "elsewhere": "a link to a folder",
    }
    assert shades(tmp_path) == [9]


def test_unprintable_names_are_escaped(tmp_path: Path) -> None:
    for name in (b"bad\xff.png", b"two\nlines.png", b"x" * 250 + b".png"):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(5))
    names = [member.name for member in image_sources.list_images(tmp_path).members]
    assert names == ["bad\\udcff.png", "two\\nlines.png", f"{'x' * 100}...{'x' * 86}.png"]
    assert shades(tmp_path) == [5, 5, 5] and "\n".join(names).encode()


def test_a_folder_of_archives_is_read_through_them_and_a_bad_one_is_named(tmp_path: Path) -> None:
    written(tmp_path / "b.zip", {"2.png": encoded(70), "1.png": encoded(60)})
    pq.write_table(pa.table({"image": [encoded(50)]}), tmp_path / "a.Parquet")
    (tmp_path / "c.zip").write_bytes(b"PK no")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "d.parquet")
    assert shades(tmp_path) == [50, 60, 70]
    assert [member.name for member in image_sources.list_images(tmp_path).members] == [
        "a.Parquet:0",
        "b.zip:1.png",
        "b.zip:2.png",
    ]
    found = skipped(tmp_path)
    assert found["c.zip"].startswith("no readable zip file") and "without a column 'image'" in found["d.parquet"]
    assert str(tmp_path) not in str(found)


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1))
    found = {image_sources.list_images(tmp_path).fingerprint, image_sources.list_images(tmp_path).fingerprint}
    (tmp_path / "b.png").write_bytes(encoded(1))
    found.add(image_sources.list_images(tmp_path).fingerprint)
    os.utime(tmp_path / "b.png", (1, 1))
    assert len(found | {image_sources.list_images(tmp_path).fingerprint}) == 3


# ---------------------------------------------------------------- zip


def test_a_zip_is_read_like_a_folder_and_names_that_leave_it_are_skipped(tmp_path: Path) -> None:
    members = {
        "b/2.png": encoded(20),
        "../evil.png": encoded(0),
        "/etc/evil.png": encoded(0),
        "b/../../evil.png": encoded(0),
        "..\\evil.png": encoded(0),
        "C:\\evil.png": encoded(0),
        "__MACOSX/b/._2.png": b"x",
        "b/.thumb.png": b"x",
        "notes.txt": b"x",
        "b/": b"",
        "1:2.png": encoded(10),
    }
    path = written(tmp_path / "Photos.ZIP", members)
    assert shades(path) == [10, 20]
    found = skipped(path)
    assert len(found) == len(members) - 3
    assert {reason for name, reason in found.items() if "evil" in name} == {"a name that leads out of the archive"}
    assert found["__MACOSX/b/._2.png"] == found["b/.thumb.png"] == "hidden"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Photos.ZIP"]  # nothing was unpacked


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_with_one_name_the_later_counts_and_the_other_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for shade in (10, 30):
            archive.writestr("same.png", encoded(shade))
    assert shades(tmp_path / "a.zip") == [30]
    assert "there twice" in skipped(tmp_path / "a.zip")["same.png"]


def patched(path: Path, size: int) -> Path:
    """Let the only member of a zip file claim another size when unpacked."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def bomb(path: Path, size: int) -> Path:
    """A zip file with one "picture" of `size` zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as member:
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    return path


def test_a_member_that_claims_too_large_a_size_is_skipped_unread(tmp_path: Path) -> None:
    path = patched(written(tmp_path / "a.zip", {"a.png": encoded(1)}), image_sources.MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"holds no pictures .*a.png is 268 MB when unpacked, over 268 MB"):
        image_sources.list_images(path)


def test_a_bomb_that_lies_about_its_size_inflates_to_no_more_than_it_claims(tmp_path: Path) -> None:
    path = patched(bomb(tmp_path / "a.zip", 400 << 20), 1000)
    code = f"""
import resource
from pathlib import Path
from pipeline.storage import image_sources as sources
from pipeline.runtime.errors import InputError
path = Path({str(path)!r})
(member,) = sources.list_images(path).members
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    sources.open_member(path, member)
except InputError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, _, reason = done.stdout.strip().partition(" ")
    assert int(grown) < 50 and reason.startswith("it cannot be read from its archive (Bad CRC")


def test_encrypted_cut_and_oddly_packed_members_have_a_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", {"a.png": encoded(1), "b.png": encoded(2), "c.png": encoded(3)})
    content = bytearray(path.read_bytes())
    entries = [at for at in range(len(content)) if content[at : at + 4] == b"PK\1\2"]
    content[entries[0] + 8] |= 1  # encrypted
    content[entries[1] + 10] = 99  # an unknown way of packing
    at = content.index(b"IDAT", content.index(b"c.png"))
    content[at + 6] ^= 255
    path.write_bytes(content)
    found = image_sources.list_images(path)
    assert dict(found.skipped) == {"a.png": "encrypted"}
    for member in found.members:
        with pytest.raises(InputError, match="it cannot be read from its archive"):
            image_sources.open_member(path, member)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 10_000), st.integers(0, 255))
@example(b"\0\0", 1332, 0)  # a member without a name
def test_random_bytes_in_a_zip_raise_only_input_errors(
    tmp_path_factory: pytest.TempPathFactory, extra: bytes, at: int, value: int
) -> None:
    path = written(tmp_path_factory.mktemp("zip") / "a.zip", {"a.png": encoded(1), "b.png": encoded(2)})
    content = bytearray(path.read_bytes() + extra)
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        for member in image_sources.list_images(path).members:
            images.read_rgb(image_sources.open_member(path, member))
    except InputError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------- Parquet


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_of_parquet_files_come_back_in_any_order(tmp_path: Path, wrapped: bool, group: int) -> None:
    pictures = [encoded(shade) for shade in range(0, 100, 5)]
    column = [{"bytes": picture, "path": None} for picture in pictures] if wrapped else pictures
    for part in (slice(0, 13), slice(13, 20)):
        pq.write_table(pa.table({"image": column[part]}), tmp_path / f"{part.start:02}.parquet", row_group_size=group)
    assert shades(tmp_path) == list(range(0, 100, 5))
    members = image_sources.list_images(tmp_path).members
    order = np.random.default_rng(0).permutation(20).tolist()
    read = [images.read_rgb(image_sources.open_member(tmp_path, members[place]))[0] for place in order]
    assert [int(np.asarray(picture).mean()) for picture in read] == [5 * place for place in order]


def test_rows_without_a_picture_have_a_reason(tmp_path: Path) -> None:
    rows = [{"bytes": encoded(7), "path": "x"}, {"bytes": None, "path": "elsewhere.png"}, None, {"bytes": b""}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    found = image_sources.list_images(tmp_path / "a.parquet")
    assert [member.name for member in found.members] == ["0", "1", "2", "3"]
    for place, reason in ((1, "no encoded bytes"), (2, "no encoded bytes"), (3, "it is empty")):
        with pytest.raises(InputError, match=reason):
            image_sources.open_member(found.path, found.members[place])
    assert isinstance(image_sources.open_member(found.path, found.members[0]), io.BytesIO)


def test_a_damaged_parquet_file_costs_only_its_damaged_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    noise = [np.random.default_rng(i).bytes(1000) for i in range(40)]
    pq.write_table(pa.table({"image": noise}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[middle : middle + 60] = bytes(60)
    path.write_bytes(content)
    found, bad = image_sources.list_images(path), []
    for place, member in enumerate(found.members):
        try:
            assert image_sources.open_member(path, member).getvalue() == noise[place]  # type: ignore[union-attr]
        except InputError:
            bad.append(place)
    assert bad == list(range(20, 30))


def test_one_huge_row_group_is_read_a_few_rows_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    content = np.random.default_rng(0).bytes(1 << 20)
    rows = pa.array([content] * 300, pa.binary())
    pq.write_table(pa.table({"image": rows}), path, compression="NONE", use_dictionary=False)
    code = f"""
import resource
from pathlib import Path
from pipeline.storage import image_sources as sources
path = Path({str(path)!r})
found = sources.list_images(path)
sources.open_member(path, found.members[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for member in found.members:
    assert len(sources.open_member(path, member).getvalue()) == 1 << 20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120  # MB, of 300


# ---------------------------------------------------------------- what is refused whole


def test_bad_sources_are_refused_in_one_line_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "text.parquet").write_bytes(b"")
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "names.parquet")
    pq.write_table(pa.table({"image": [{"path": "a.png"}]}), tmp_path / "paths.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unusable").mkdir()
    (tmp_path / "unusable/a.txt").write_text("x")
    written(tmp_path / "none.zip", {"a.txt": b"x"})
    bad = ["broken.zip", "broken.parquet", "text.parquet", "names.parquet", "paths.parquet", "empty", "unusable"]
    for name in (*bad, "none.zip", "missing", "broken.txt"):
        with pytest.raises(InputError) as caught:
            image_sources.list_images(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
