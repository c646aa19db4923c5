"""Layout of the style code s: layers and levels of its channels (StyleSpace, Wu et al. 2021; DeltaEdit section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

LEVELS = ("coarse", "medium", "fine")
Space = Literal["s", "w_plus"]


@dataclass(frozen=True)
class StyleLayout:
    """Style channels of a StyleGAN2 in forward order, without toRGB layers.

    dims: input channels of every modulated convolution.
    split: (a, b); layers [0, a) are coarse, [a, b) medium, the rest fine.
    """

    dims: tuple[int, ...]
    split: tuple[int, int] = (3, 7)

    @property
    def size(self) -> int:
        """S, the length of a style code."""
        return sum(self.dims)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First channel of every layer."""
        return (0, *accumulate(self.dims))[:-1]

    def layer(self, index: int) -> slice:
        """Channels of a layer in s."""
        return slice(self.offsets[index], self.offsets[index] + self.dims[index])

    def level_dims(self) -> dict[str, tuple[int, ...]]:
        """Level -> widths of its layers; a level without layers is absent."""
        a, b = self.split
        groups = dict(zip(LEVELS, (self.dims[:a], self.dims[a:b], self.dims[b:]), strict=True))
        return {name: dims for name, dims in groups.items() if dims}

    @property
    def levels(self) -> dict[str, slice]:
        """Level -> its channels in s; a level without layers is absent."""
        result, start = {}, 0
        for name, dims in self.level_dims().items():
            result[name] = slice(start, start + sum(dims))
            start += sum(dims)
        return result

    @property
    def level_sizes(self) -> tuple[int, int, int]:
        """Channels of (coarse, medium, fine); 0 for an absent level."""
        dims = self.level_dims()
        coarse, medium, fine = (sum(dims.get(level, ())) for level in LEVELS)
        return coarse, medium, fine


def w_plus_layout(rows: int, dim: int, split: tuple[int, int] = (4, 8)) -> StyleLayout:
    """Layout of a flattened w_plus [L*D], a layer per row; the default split is that of StyleCLIP's mapper."""
    return StyleLayout((dim,) * rows, split)
