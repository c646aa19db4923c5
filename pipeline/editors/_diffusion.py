"""Editors that invert images to noise under their own style and sample them under another.

The noise keeps content that the style does not determine. Whole images are sampled, or the inside of DiffEdit's mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import sampling
from pipeline.editors._edit_direction import ChannelMask, NetworkEditor, clamped, masked_delta, masked_direction
from pipeline.models import ode_solvers
from pipeline.models.ode_solvers import Sampled, Solver, StateOverride, Trajectory
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.values import Direction, Edited, ImagePair, Prepared, Source, TextPair

if TYPE_CHECKING:
    from pipeline.models.stylespace import Space

NEEDS = ("denoiser", "clip", "mapper", "relevance", "s_stats")
NEEDS_WITH_GENERATOR = ("generator", *NEEDS)
CLAMP = 3.0  # times the mean contrast is full contrast (DiffEdit)
FLAT = 2.0  # no mask where the largest contrast is below this many times the median


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class SamplingParams:
    """Settings of inversion and sampling.

    strength: factor on the change of the style
    steps, solver: of both directions; the paper takes 100 steps of ddim
    guidance: factor, in sampling, on how the denoiser's output changes with the style; 1, as in the paper, evaluates
        the denoiser once per step instead of twice

    Raises ValueError for steps that the solver cannot take, and for a guidance of 0 or less.
    """

    strength: float
    steps: int
    solver: Solver
    guidance: float

    def __post_init__(self) -> None:
        check_trajectory(self)
        if not self.guidance > 0:
            raise ValueError(f"guidance is {self.guidance}: more than 0 is expected")

    @property
    def trajectory(self) -> Trajectory:
        """Steps of the solver, from the image to noise."""
        return Trajectory(self.steps, self.solver)


def check_trajectory(params: Any) -> None:
    """Raise ValueError where `params.trajectory` is not possible."""
    try:
        _ = params.trajectory
    except InputError as error:
        raise ValueError(str(error).replace("ratio", "encode_ratio")) from error  # its name in params.yaml


@dataclass(frozen=True)
class WholeImageParams(SamplingParams, ChannelMask):
    """Settings of an editor that moves s and inverts images all the way to noise."""

    def __post_init__(self) -> None:
        ChannelMask.__post_init__(self)
        SamplingParams.__post_init__(self)


@dataclass(frozen=True)
class PartialParams(WholeImageParams):
    """Settings of an editor that inverts images a part of the way to noise.

    encode_ratio: that share of the steps
    generator_share: factor on the generator's own change for the edit, which is added to the inverted image; not in the
        paper, 0: nothing is added
    """

    encode_ratio: float
    generator_share: float

    @property
    def trajectory(self) -> Trajectory:
        return Trajectory(self.steps, self.solver, ratio=self.encode_ratio)


@dataclass(frozen=True)
class MaskParams(PartialParams):
    """Settings of an editor that changes images inside DiffEdit's mask only.

    mask_draws: noises that the contrast is averaged over
    mask_noise: noise to signal at which it is measured; in the middle of Stable Diffusion's schedule it is 1.6
    mask_cell: side of a square, pixels, that is inside or outside as a whole
    mask_clamp: full contrast is the largest one (peak), or CLAMP times the mean (mean, as in DiffEdit)
    mask_threshold: share of full contrast above which a square is inside
    seed: of the noises

    Raises ValueError for values out of range.
    """

    mask_draws: int
    mask_noise: float
    mask_cell: int
    mask_clamp: Literal["mean", "peak"]
    mask_threshold: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_draws < 1 or self.mask_cell < 1 or not (self.mask_noise > 0 and 0 < self.mask_threshold < 1):
            raise ValueError(
                "mask_draws and mask_cell from 1, mask_noise above 0, mask_threshold in (0, 1) are expected"
            )


# ---------------------------------------------------------------- editors


@dataclass(frozen=True)
class Inverted(Prepared):
    """Source images at noise.

    noise: of the inversion
    unedited: the generator's images [B,3,R,R] of the inversion, where the edit adds their change
    noised, outputs: images with the noises of the mask [B,3,R,R], and the denoiser's outputs under their own style
    """

    noise: Sampled
    unedited: Tensor | None = None
    noised: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class StyleConditionedEditor(NetworkEditor):
    """Base of editors by a denoiser that is conditioned on styles; the style is s, moved as in DeltaEdit-G."""

    space: ClassVar[Space] = "s"

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return masked_direction(self.networks, super().fit(condition), self.params)

    def style(self, source: Source) -> Tensor:
        """Style [B,S] of the source images."""
        return source.s

    def moved(self, source: Source, direction: Direction, strength: float) -> Tensor:
        """Style [B,S] of the edit: s + delta_s, masked and clamped."""
        s = source.s + masked_delta(self.networks, source, direction, self.params, strength)
        return clamped(self.networks, source, s, self.params.max_sigma)

    def style_codes(self, style: Tensor) -> Tensor:
        """s [B,S] of a style."""
        return style

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [S] of styles."""
        return sampling.style_stats(self.networks)

    def condition(self, style: Tensor) -> Tensor:
        """Standardised style [B,S]. Raises InputError if the denoiser was trained on another space."""
        if (space := self.networks.denoiser.space) != self.space:
            fitting = {"s": "the other diffusion editors", "w_plus": "deltaedit_d_wplus"}[space]
            raise InputError(f"this denoiser is conditioned on {space}: use {fitting}, or change diffusion.space")
        return ode_solvers.standardise(style, *self.statistics())

    def predict(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The denoiser's output in bfloat16, its precision in training, for steps that need not be inverted.

        (Ten steps of belm in bfloat16 were 1.4 times as fast, and gave images back at 50 dB instead of exactly.)
        """
        with lowered(x.device):
            return self.networks.denoiser(x, t, condition).float()


class WholeImageEditor(StyleConditionedEditor):
    """Invert whole images under their own style and sample them under another."""

    params: Any

    @torch.no_grad()
    def prepare(self, source: Source) -> Inverted:
        return Inverted(source, self.invert(source), self.unedited(source))

    @torch.no_grad()
    def edit(self, prepared: Inverted, direction: Direction, strength: float) -> Edited:
        """`evaluations` of the result counts both directions."""
        style = self.moved(prepared.source, direction, strength)
        noise = self.with_generator_change(prepared, style)
        images = self.sample(noise, style, self.style(prepared.source))
        evaluations = prepared.noise.evaluations + images.evaluations
        return Edited(images.x, s=self.style_codes(style), evaluations=evaluations)

    def invert(self, source: Source, keep: bool = False) -> Sampled:
        """Noise of the source images. keep: with all states of the inversion."""
        denoiser, condition = self.networks.denoiser, self.condition(self.style(source))
        return ode_solvers.encode(denoiser, source.image, condition, self.params.trajectory, denoiser.objective, keep)

    def unedited(self, source: Source) -> Tensor | None:
        """The generator's images [B,3,R,R] of the inversion, if edits add their change."""
        if not isinstance(self.params, PartialParams) or not self.params.generator_share:
            return None
        return self.networks.generator.synthesis(source.s, source.inversion.w_plus)

    def with_generator_change(self, prepared: Inverted, s: Tensor) -> Sampled:
        """The noise, with `generator_share` times the generator's change from source.s to s [B,S] in its image part."""
        noise, params = prepared.noise, self.params
        if prepared.unedited is None:
            return noise
        top = params.trajectory.count
        change = self.networks.generator.synthesis(s, prepared.source.inversion.w_plus) - prepared.unedited
        factors = [
            params.generator_share * ode_solvers.signal_level(number, params.trajectory) for number in (top - 1, top)
        ]
        below, x = (state + factor * change for state, factor in zip((noise.path[-2], noise.x), factors, strict=True))
        return Sampled(x, noise.evaluations, (below, x))

    def sample(
        self, noise: Sampled, style: Tensor, source_style: Tensor | None = None, override: StateOverride | None = None
    ) -> Sampled:
        """Images of a style [B,S] from noise.

        source_style: style [B,S] of the source, from which guidance leads away; None: without guidance
        override: changes every state on the way
        """
        denoiser, trajectory, guidance = self.networks.denoiser, self.params.trajectory, self.params.guidance
        if source_style is None or guidance == 1:
            return ode_solvers.decode(denoiser, noise, self.condition(style), trajectory, denoiser.objective, override)
        unguided = self.condition(source_style)

        def guided(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            return torch.lerp(denoiser(x, t, unguided), denoiser(x, t, condition), guidance)

        images = ode_solvers.decode(guided, noise, self.condition(style), trajectory, denoiser.objective, override)
        return Sampled(images.x, 2 * images.evaluations)


class MaskedEditor(WholeImageEditor):
    """Sample inside the mask of the contrast; outside it are the states of the inversion, and the input's pixels."""

    params: MaskParams

    @torch.no_grad()
    def prepare(self, source: Source) -> Inverted:
        params, image, denoiser = self.params, source.image, self.networks.denoiser
        if image.shape[-1] % params.mask_cell:
            raise InputError(f"mask_cell is {params.mask_cell}: it does not divide images of {image.shape[-1]} pixels")
        t, chance = self._mask_time(image), torch.Generator().manual_seed(params.seed)
        noises = torch.randn(params.mask_draws, 1, *image.shape[1:], generator=chance).to(image)  # one for all images
        noised = tuple(ode_solvers.add_noise(image, noise.expand_as(image), t, denoiser.objective) for noise in noises)
        condition = self.condition(source.s)
        outputs = tuple(self.predict(x, t, condition) for x in noised)
        return Inverted(source, self.invert(source, keep=True), self.unedited(source), noised, outputs)

    @torch.no_grad()
    def edit(self, prepared: Inverted, direction: Direction, strength: float) -> Edited:
        source, noise = prepared.source, prepared.noise
        s = self.moved(source, direction, strength)
        mask = self.mask(prepared, s)
        changed = self.with_generator_change(prepared, s)
        path = tuple(torch.where(mask > 0, *both) for both in zip(changed.path[-2:], noise.path[-2:], strict=True))
        start = Sampled(path[-1], noise.evaluations, path)
        images = self.sample(start, s, source.s, lambda number, x: torch.where(mask > 0, x, noise.path[number]))
        evaluations = noise.evaluations + images.evaluations + 2 * self.params.mask_draws
        return Edited(images.x, s=s, mask=mask, evaluations=evaluations)

    def mask(self, prepared: Inverted, s: Tensor) -> Tensor:
        """Mask [B,1,R,R] of 0 and 1 of the change of style from source.s to s [B,S] (DiffEdit, section 3.2).

        Inside are squares where the denoiser's outputs under the two styles, on the same noised images, differ by more
        than `mask_threshold` of full contrast; none in an image where no square stands out.
        """
        params, source = self.params, prepared.source
        t = self._mask_time(source.image)
        condition = self.condition(source.s + (s - source.s))  # rounds otherwise than s does
        after = (self.predict(x, t, condition) for x in prepared.noised)
        changes = [(b - a).abs().mean(dim=1, keepdim=True) for a, b in zip(prepared.outputs, after, strict=True)]
        contrast = torch.stack(changes).sum(dim=0)
        cells = F.avg_pool2d(contrast, params.mask_cell)
        flat = cells.flatten(1)
        full = cells.amax(dim=(2, 3), keepdim=True)
        if params.mask_clamp == "mean":
            full = CLAMP * cells.mean(dim=(2, 3), keepdim=True)
        inside = cells > params.mask_threshold * full
        stands_out = flat.amax(dim=1) > FLAT * flat.median(dim=1).values
        mask = (inside & stands_out[:, None, None, None]).to(source.image)
        return F.interpolate(mask, size=source.image.shape[2:], mode="nearest")

    def _mask_time(self, image: Tensor) -> Tensor:
        """Time [B] at which the contrast is measured."""
        t = ode_solvers.time_at_noise_ratio(self.params.mask_noise, self.networks.denoiser.objective)
        return torch.full((len(image),), t, device=image.device)
