"""Values that `deltaspace.studio.Studio` takes and returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.editors import Editor
    from pipeline.values import Edited, Source, TextPair


@dataclass(frozen=True)
class EditableImage:
    """An image and its inversion, a batch of one.

    inversion: image [3,R,R] that the generator makes of the codes and their detail
    error: mean squared error of the inversion, pixels in [0,1]; None for a generated image
    notes: changes made to the file's image, such as a crop
    warnings: reasons why results may disappoint
    """

    name: str
    source: Source
    inversion: Tensor
    error: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def pixels(self) -> Tensor:
        """The image [3,R,R] in [-1,1], on the CPU."""
        return self.source.image[0].cpu()

    @property
    def psnr(self) -> float | None:
        """PSNR of the inversion in dB."""
        return None if self.error is None else -10 * math.log10(max(self.error, 1e-10))


@dataclass(frozen=True)
class Prompt:
    """A cleaned condition in words, and warnings about it."""

    pair: TextPair
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConfiguredEditor:
    """An editor and the settings it was built with. origins: setting -> where its value comes from."""

    name: str
    settings: Any
    editor: Editor
    warnings: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def strength(self) -> float:
        """The strength in its settings, 1 where it has none."""
        return float(getattr(self.settings, "strength", 1.0))


@dataclass(frozen=True)
class Result:
    """One edit. moved: how many of `channels` style channels changed; None where the editor works on no channels."""

    image: EditableImage
    prompt: Prompt
    editor: str
    strength: float
    edited: Edited
    seconds: float
    moved: int | None = None
    channels: int | None = None
    editor_warnings: tuple[str, ...] = ()

    @property
    def pixels(self) -> Tensor:
        """The edited image [3,R,R] in [-1,1], on the CPU."""
        return self.edited.images[0].float().clamp(-1, 1).cpu()

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.image.warnings, *self.prompt.warnings, *self.editor_warnings)

    def save(self, path: str | Path) -> None:
        """Write the edited image as PNG, whole or not at all."""
        from pipeline.storage import images

        images.save_png(Path(path), self.pixels)
