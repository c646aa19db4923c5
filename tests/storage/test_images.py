"""Any image file becomes a square tensor or one line of advice; encoding and decoding are exact."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import full_after
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.runtime.errors import InputError
from pipeline.storage import images

R = 16


def ramp(width: int = 32, height: int = 32) -> np.ndarray:
    """uint8 [H,W,3]; red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 90)], -1).round().astype(np.uint8)


def open_photo(path: Path | io.BytesIO, resolution: int) -> images.Photo:
    rgb, notes = images.read_rgb(path)
    return images.photo_of(images.squared(rgb, resolution, notes), notes)


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def pixels(path: Path, resolution: int = R) -> np.ndarray:
    photo = open_photo(path, resolution)
    assert photo.image.shape == (1, 3, resolution, resolution) and photo.image.dtype == torch.float32
    assert photo.image.min() >= -1 and photo.image.max() <= 1
    return images.to_uint8(photo.image)[0]


def header_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_picture_of_the_right_size_passes_bit_for_bit(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(ramp(R, R)))
    assert np.array_equal(pixels(path), ramp(R, R))
    assert open_photo(path, R).notes == []


def test_a_whole_number_reduction_averages_boxes(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(ramp(32, 32)))
    boxes = ramp(32, 32).reshape(R, 2, R, 2, 3).astype(float).mean((1, 3))
    assert np.abs(pixels(path) - boxes).max() <= 0.5


@pytest.mark.parametrize(("size", "left", "top"), [((48, 32), 8, 0), ((32, 50), 0, 9), ((33, 32), 0, 0)])
def test_pictures_that_are_not_square_lose_their_edges_evenly(tmp_path, size, left, top):
    whole = ramp(*size)
    path = saved(tmp_path / "a.png", Image.fromarray(whole))
    square = saved(tmp_path / "b.png", Image.fromarray(whole[top : top + 32, left : left + 32]))
    assert np.array_equal(pixels(path), pixels(square))
    assert any("cropped from" in note for note in open_photo(path, R).notes)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_gives_the_same_grey_ramp(tmp_path, mode):
    grey = np.tile(np.linspace(0, 255, R).round().astype(np.uint8), (R, 1))
    if mode == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    wide = grey.astype(np.uint16) * 257
    picture = {
        "I;16": lambda: Image.fromarray(wide),
        "I": lambda: Image.fromarray(wide.astype(np.int32)),
        "F": lambda: Image.fromarray(grey.astype(np.float32) / 255),
    }.get(mode, lambda: Image.fromarray(grey).convert("RGB" if mode == "CMYK" else "L").convert(mode))()
    assert picture.mode == mode
    png = mode in ("1", "L", "LA", "P", "RGBA", "I;16")
    path = saved(tmp_path / ("a.png" if png else "a.tiff"), picture)
    found = pixels(path).astype(int)
    assert np.abs(found - grey[..., None]).max() <= 2


def test_transparency_becomes_white_also_in_palettes(tmp_path):
    rgba = np.zeros((R, R, 4), np.uint8)
    rgba[: R // 2] = (255, 0, 0, 255)
    rgba[R // 2 :, :, 3] = 128
    path = saved(tmp_path / "a.png", Image.fromarray(rgba))
    found = pixels(path)
    assert found[0, 0].tolist() == [255, 0, 0] and np.abs(found[-1, 0].astype(int) - 127).max() <= 1
    assert "transparency became white" in open_photo(path, R).notes
    palette = Image.new("P", (R, R), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixels(saved(tmp_path / "p.png", palette, transparency=1))[0, 0].tolist() == [255, 255, 255]
    opaque = np.dstack([ramp(R, R), np.full((R, R), 255, np.uint8)])
    assert open_photo(saved(tmp_path / "o.png", Image.fromarray(opaque)), R).notes == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = Image.fromarray(ramp(R, R))
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "a.png", upright.transpose(turn) if turn is not None else upright, exif=exif)
    assert np.array_equal(pixels(path), ramp(R, R))
    assert ("turned as its EXIF data say" in open_photo(path, R).notes) == (orientation > 1)


def test_broken_exif_is_ignored(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(ramp()), exif=b"Exif\0\0MM\0*garbage" + bytes(40), quality=95)
    assert np.abs(pixels(path).astype(int) - pixels(saved(tmp_path / "b.png", Image.fromarray(ramp())))).max() < 12


def test_of_several_frames_the_first_counts(tmp_path):
    frames = [Image.new("RGB", (R, R), color) for color in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]
    assert "first of 2 frames" in open_photo(path, R).notes


def test_bytes_serve_as_well_as_a_path(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(ramp()))
    assert torch.equal(open_photo(io.BytesIO(path.read_bytes()), R).image, open_photo(path, R).image)


def refused(path: Path, error: str) -> None:
    with pytest.raises(InputError, match=error) as caught:
        open_photo(path, R)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_anything_but_a_file_is_one_line(tmp_path):
    refused(tmp_path / "none.png", r"none.png does not exist")
    refused(tmp_path, "is a folder: give a picture file")
    refused(tmp_path / ("x" * 300), "cannot be opened|does not exist")
    refused(Path("a\0b.png"), "cannot be opened|does not exist")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is empty")
    (tmp_path / "a.png").write_text("hello")
    refused(tmp_path / "a.png", "is not a picture that can be read: save it as PNG or JPEG")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n")
    refused(tmp_path / "a.eps", "is not a picture")  # reading it would run another program


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_one_line(tmp_path, kind, part):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"a.{kind}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refused(path, r"cannot be (decoded|read)|not a picture")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF", b"II*\0"])
)
def test_random_bytes_raise_only_input_errors(content, start):
    try:
        open_photo(io.BytesIO(start + content), R)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [(10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(header_png(*size))
    refused(path, "Mpixel")


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 7)])
def test_a_too_small_image_is_refused(tmp_path, size):
    refused(saved(tmp_path / "a.png", Image.new("RGB", size)), r"is only \d+ x \d+ pixels")


def test_a_small_picture_is_enlarged_and_says_so(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(ramp(9, 9)))
    assert pixels(path).shape == (R, R, 3)
    assert open_photo(path, R).notes == ["enlarged from 9 to 16 pixels"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_pixels_survive_tensors_and_png_exactly(seed, height, width):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = images.from_uint8(values)
    assert image.shape == (3, height, width) and np.array_equal(images.to_uint8(image), values)
    content = images.encode_png(image)
    assert torch.equal(images.decode_png(content), image) and images.encode_png(image) == content


def test_batches_keep_their_leading_axes_and_values_beyond_the_range_are_clipped():
    batch = torch.linspace(-3, 3, 2 * 5 * 3 * 4 * 6).view(2, 5, 3, 4, 6)
    values = images.to_uint8(batch)
    assert values.shape == (2, 5, 4, 6, 3) and values.min() == 0 and values.max() == 255
    assert torch.equal(images.from_uint8(values), images.from_uint8(torch.from_numpy(values)))
    assert images.from_uint8(values).shape == batch.shape
    assert images.to_uint8(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)).tolist() == [[[0, 128, 255]]]


def test_masks_survive_png(tmp_path):
    mask = torch.arange(256).view(1, 16, 16) / 255
    assert torch.equal(images.decode_mask(images.encode_mask(mask)), mask)


def test_a_broken_stored_picture_is_one_line():
    with pytest.raises(InputError, match="stored picture cannot be decoded"):
        images.decode_png(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"\[3,H,W\] is expected"):
        images.encode_png(torch.zeros(1, 3, 4, 4))


def test_a_grid_puts_rows_below_each_other_on_white():
    red, blue = torch.zeros(3, 2, 4), torch.zeros(3, 2, 4)
    red[0], blue[2] = 0.5, 0.25
    sheet = images.grid([[red, None, blue], [blue]], pad=1)
    assert sheet.shape == (3, 2 * 3 + 1, 3 * 5 + 1)
    assert torch.equal(sheet[:, 1:3, 1:5], red) and torch.equal(sheet[:, 1:3, 11:15], blue)
    assert torch.equal(sheet[:, 4:6, 1:5], blue)
    assert (sheet[:, 0] == 1).all() and (sheet[:, 1:3, 6:10] == 1).all() and (sheet[:, 3] == 1).all()
    with pytest.raises(ValueError, match="equally large"):
        images.grid([[red, torch.zeros(3, 2, 5)]])
    with pytest.raises(ValueError, match="at least one"):
        images.grid([[None]])


def test_a_full_disk_leaves_no_half_picture(tmp_path):
    path = tmp_path / "out" / "a.png"
    with full_after(500), pytest.raises(InputError, match=rf"cannot write {path}: File too large") as caught:
        images.save_png(path, torch.rand(3, 64, 64))
    assert "\n" not in str(caught.value) and list(path.parent.iterdir()) == []
    images.save_png(path, torch.zeros(3, 4, 4))
    assert images.decode_png(path.read_bytes()).shape == (3, 4, 4)
