"""Image files: any photograph to a square tensor, tensors to PNG. Image tensors are [..,3,R,R] in [-1,1]."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.runtime import files
from pipeline.runtime.errors import InputError

MAX_PIXELS = 100_000_000  # a header may claim any size; more than this is not decoded
MIN_SIDE = 8
MIN_CELL = 128  # pixels: an image in a grid is at least this wide
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # none is decoded by another program, as EPS is
_DEEP = ("I", "F")  # 32-bit greyscale; 16-bit modes begin with "I;16"
_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Photo:
    """A photograph as the pipeline takes it. image: [1,3,R,R] in [-1,1]. notes: what was done to it, in words."""

    image: Tensor
    notes: list[str] = field(default_factory=list)


def photo_of(square: Image.Image, notes: list[str]) -> Photo:
    """Photo of an RGB image that is R x R already."""
    return Photo(from_uint8(np.asarray(square))[None], notes)


def read_rgb(path: Path | io.BytesIO, name: str | None = None) -> tuple[Image.Image, list[str]]:
    """Read an image file, or its bytes, as 8-bit RGB, turned by its EXIF data; also what was done to it, in words.

    Transparency becomes white; grey, palette, CMYK and 16-bit images are converted; of several frames the first counts.

    name: of the image in errors.

    Raises InputError for a file that is missing, a folder, empty, cut short, no image, over 100 Mpixel (before
    decoding) or under 8 pixels wide or high.
    """
    name = name or (str(path) if isinstance(path, str | Path) else "the picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own notes on size, EXIF and transparency
        picture = _opened(path, name)
        try:
            with picture:
                notes = _turned_notes(picture)
                frames = getattr(picture, "n_frames", 1)
                if frames > 1 and picture.format != "MPO":
                    notes.append(f"first of {frames} frames")
                picture.load()
                return _as_rgb(_turned(picture), notes), notes
        except InputError:
            raise
        except Exception as error:  # decoders raise errors of all kinds for broken files
            raise InputError(f"{name} cannot be decoded ({_reason(error)}): it may be cut short or damaged") from error


def encode_png(image: Tensor) -> bytes:
    """Encode an image [3,R,R] in [-1,1] as PNG; equal images give equal bytes."""
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"an image [3,H,W] is expected, not {list(image.shape)}")
    return _png(Image.fromarray(to_uint8(image)))


def decode_png(content: bytes) -> Tensor:
    """Decode an image [3,R,R] in [-1,1]. Raises InputError for damaged bytes."""
    return from_uint8(_decoded(content, "RGB"))


def encode_mask(mask: Tensor) -> bytes:
    """Encode a mask [1,R,R] in [0,1] as PNG, 8-bit grey."""
    grey = (mask.detach().float().cpu()[0] * 255).round().clamp(0, 255).byte().numpy()
    return _png(Image.fromarray(grey))


def decode_mask(content: bytes) -> Tensor:
    """Decode a mask [1,R,R] in [0,1]. Raises InputError for damaged bytes."""
    return torch.from_numpy(_decoded(content, "L").copy()).float()[None] / 255


def save_png(path: Path, image: Tensor) -> None:
    """Write an image [3,H,W] in [-1,1] as PNG, whole or not at all."""
    files.write_bytes(Path(path), encode_png(image))


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert [..,3,H,W] in [-1,1] to uint8 [..,H,W,3]; values outside are clipped."""
    pixels = (images.detach().float().cpu() * 127.5 + 127.5).round().clamp(0, 255).byte()
    return np.ascontiguousarray(pixels.movedim(-3, -1).numpy())


def from_uint8(pixels: np.ndarray | Tensor) -> Tensor:
    """Convert uint8 [..,H,W,3] to float32 [..,3,H,W] in [-1,1]."""
    values = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    return (values.float() / 127.5 - 1).movedim(-1, -3).contiguous()


def grid(images: Sequence[Sequence[Tensor | None]], pad: int = 2) -> Tensor:
    """Arrange rows of equally large images [3,R,R] as one [3,H,W] on white, `pad` pixels apart; None leaves a gap."""
    cells = [cell for row in images for cell in row if cell is not None]
    if not cells:
        raise ValueError("a grid needs at least one image")
    if any(cell.shape != cells[0].shape for cell in cells):
        raise ValueError("the images of a grid must be equally large")
    _, height, width = cells[0].shape
    columns = max(map(len, images))
    sheet = torch.ones(3, len(images) * (height + pad) + pad, columns * (width + pad) + pad)
    for y, row in enumerate(images):
        for x, cell in enumerate(row):
            if cell is not None:
                top, left = pad + y * (height + pad), pad + x * (width + pad)
                sheet[:, top : top + height, left : left + width] = cell.detach().float().cpu()
    return sheet


def save_grid(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """Write rows of images [3,R,R] as one PNG; small ones are enlarged by whole factors to MIN_CELL pixels."""
    factor = max(1, MIN_CELL // rows[0][0].shape[-1])
    enlarged = [[cell.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for cell in row] for row in rows]
    save_png(path, grid(enlarged, pad=max(2, factor)))


def _opened(path: Any, name: str) -> Image.Image:
    if isinstance(path, str | Path):
        path = Path(path)
        try:
            if path.is_dir():
                raise InputError(f"{name} is a folder: give a picture file")
            if not path.exists():
                raise InputError(f"{name} does not exist: check the name")
            if not path.is_file():
                raise InputError(f"{name} is not a plain file: give a picture file")
            if path.stat().st_size == 0:
                raise InputError(f"{name} is empty: give a picture file")
        except (OSError, ValueError) as error:
            raise InputError(f"{_short(name)} cannot be opened ({_reason(error)}): check the name") from error
    try:
        picture = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} claims over {MAX_PIXELS // 10**6} Mpixel: make it smaller first") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture that can be read: save it as PNG or JPEG") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({_reason(error)}): check the file") from error
    except Exception as error:  # a broken header
        raise InputError(f"{name} cannot be read ({_reason(error)}): it may be damaged") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise InputError(f"{name} is {width} x {height} pixels, over {limit} Mpixel: make it smaller first")
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} is only {width} x {height} pixels: at least {MIN_SIDE} each way are needed")
    return picture


def _short(name: str) -> str:
    """A name that may itself be wrong, escaped and shortened."""
    shown = name.encode("unicode_escape").decode()
    return shown if len(shown) <= 120 else f"{shown[:60]}...{shown[-50:]}"


def _turned_notes(picture: Image.Image) -> list[str]:
    try:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF data do not concern the pixels
        return []
    return ["turned as its EXIF data say"] if orientation in range(2, 9) else []


def _turned(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def _as_rgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I;16") or mode in _DEEP:
        picture = Image.fromarray(_eight_bit(np.asarray(picture).astype(np.float64), mode))
        notes.append("reduced to 8 bits")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        if np.asarray(rgba.getchannel("A")).min() < 255:
            notes.append("transparency became white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode in ("1", "L", "CMYK"):
        notes.append({"1": "black and white", "L": "greyscale", "CMYK": "CMYK colours converted"}[mode])
    return picture.convert("RGB")


def _eight_bit(values: np.ndarray, mode: str) -> np.ndarray:
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    if mode == "F":
        full = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        full = 255.0 if mode == "I" and values.max(initial=0) <= 255 else 65535.0
    return (values / full * 255).round().clip(0, 255).astype(np.uint8)


def squared(picture: Image.Image, resolution: int, notes: list[str]) -> Image.Image:
    """Centre square of an RGB image as R x R = `resolution`; `notes` gets what was done.

    Whole-number reductions use a box filter, others Lanczos.
    """
    width, height = picture.size
    side = min(width, height)
    if width != height:
        notes.append(f"cropped from {width} x {height} to its centre")
    if side < resolution:
        notes.append(f"enlarged from {side} to {resolution} pixels")
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == resolution:
        return picture.crop(box)
    whole = side % resolution == 0
    return picture.resize(
        (resolution, resolution), Image.Resampling.BOX if whole else Image.Resampling.LANCZOS, box=box
    )


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _decoded(content: bytes, mode: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return np.asarray(picture.convert(mode))
    except Exception as error:
        raise InputError(f"a stored picture cannot be decoded ({_reason(error)}): make its file again") from error


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]
