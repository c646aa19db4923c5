"""Editors that take people to noise under their own s and back under another: whole, or inside DiffEdit's mask.

What s does not say, the noise keeps. Their files say which of the two they are, and how far they go.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.editors._edit_direction import Known, check_mask, clip_direction, held, mapped
from pipeline.models import ode_solvers
from pipeline.models.ode_solvers import Held, Sampled, Solver, Walk
from pipeline.models.stylespace import Space
from pipeline.runtime.errors import InputError
from pipeline.runtime.precision import lowered
from pipeline.values import Direction, Edited, ImagePair, Source, TextPair

if TYPE_CHECKING:
    from pipeline.networks import Backbones

NEEDS = ("denoiser", "clip", "mapper", "relevance", "s_stats")
CARRIED = ("generator", *NEEDS)
CLAMP = 3.0  # times the mean contrast of a picture counts as the most there is (DiffEdit)
FLAT = 2.0  # where the greatest contrast is less than this many times the median, nothing stands out


@dataclass(frozen=True)
class Moving(ABC):
    """strength: factor on delta_s. threshold, agree, share, within, ridge: see `_deltas.ChannelMask`. ValueError for a
    walk that nobody can take."""

    strength: float
    threshold: float
    agree: bool
    share: float | None
    within: float | None
    ridge: float | None

    @property
    @abstractmethod
    def walk(self) -> Walk:
        """How far people go, and how finely."""

    def __post_init__(self) -> None:
        check_mask(self)
        check_walk(self)


def check_walk(params: Moving | Going) -> None:
    """ValueError for a walk that nobody can take."""
    try:
        _ = params.walk
    except InputError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Going:
    """steps, solver: of both directions; the paper decodes in 100 of ddim. refine: further rounds per encoding step,
    which make decoding give the picture back; they are paid once per person. guidance: on the way down, factor on how
    what the denoiser says changes with the style; 1, as in the paper, asks it once. ValueError for a walk that nobody
    can take.
    """

    steps: int
    solver: Solver
    refine: int
    guidance: float

    def __post_init__(self) -> None:
        check_walk(self)
        if not self.guidance > 0:
            raise ValueError(f"guidance is {self.guidance}: more than 0 is expected")

    @property
    def walk(self) -> Walk:
        return Walk(self.steps, self.solver, self.refine)


@dataclass(frozen=True)
class Settings(Going, Moving):
    """An editor of s that takes the whole way."""

    def __post_init__(self) -> None:
        Moving.__post_init__(self)
        Going.__post_init__(self)


@dataclass(frozen=True)
class Partial(Settings):
    """ratio: the part of the way to pure noise that people are taken. carry: factor on the change that the generator
    makes of the edit, which is added to the picture in the noise there (ours; 0: nothing)."""

    ratio: float
    carry: float

    @property
    def walk(self) -> Walk:
        return Walk(self.steps, self.solver, self.refine, self.ratio)


@dataclass(frozen=True)
class Masked(Partial):
    """draws: noises that the contrast is averaged over. noise: the mixture it is seen in, noise to signal; Stable
    Diffusion's half way is 1.6. amplify: factor on delta_s for the contrast alone. cell: pixels of a square that is in
    the mask or out. cut: of the most contrast there is, which by `clamp` is CLAMP times the mean, as in DiffEdit, or
    the peak. seed: of the noises.
    """

    draws: int
    noise: float
    amplify: float
    cell: int
    clamp: Literal["mean", "peak"]
    cut: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.cell < 1 or not (self.noise > 0 and 0 < self.cut < 1):
            raise ValueError("draws and cell from 1, noise above 0, cut between 0 and 1 are expected")


@dataclass(frozen=True)
class Told(ABC):
    """What tells the denoiser a style, before anything is drawn; here in s."""

    backbones: Backbones
    space: ClassVar[Space] = "s"

    def fit(self, condition: TextPair | ImagePair) -> Direction:
        return clip_direction(self.backbones, condition)

    def code(self, source: Source) -> Tensor:
        """The source's own style [B,S]."""
        return source.s

    @abstractmethod
    def moved(self, source: Source, direction: Direction, strength: float) -> Tensor:
        """The style [B,S] of the edit."""

    def styles(self, code: Tensor) -> Tensor:
        """s of a style."""
        return code

    def told(self, code: Tensor) -> Tensor:
        """A style [B,S] as the denoiser takes it. InputError if it takes those of another space."""
        if (space := self.backbones.denoiser.space) != self.space:
            names = {"s": "the other diffusion editors", "w_plus": "deltaedit_d_wplus"}
            raise InputError(f"this denoiser is told {space}: edit with {names[space]}, or change diffusion.space")
        return ode_solvers.standardise(code, *self.stats())

    def stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of styles, [S] each."""
        return self.backbones.s_stats

    def says(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """The denoiser's answer in bfloat16, as it was trained: for what need not be undone, unlike walks there.

        (Ten steps of belm in bfloat16 were 1.4 times as fast, and gave pictures back at 50 dB instead of exactly.)
        """
        with lowered(x.device):
            return self.backbones.denoiser(x, t, told).float()


@dataclass(frozen=True)
class Mover(Told):
    """What moves s as the mapper says."""

    params: Moving

    def moved(self, source: Source, direction: Direction, strength: float) -> Tensor:
        """s + delta_s [B,S] of the mapper, masked by relevance and held back."""
        s = source.s + mapped(self.backbones, source, direction, self.params, strength)
        return held(self.backbones, source, s, self.params.within)


@dataclass(frozen=True)
class Decoder(Told):
    """Decodes whole pictures. `evaluations` counts both directions, also when the noise was remembered."""

    params: Going
    known: Known = field(default_factory=Known, repr=False, compare=False)

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        code, noise = self.moved(source, direction, strength), self.noise(source)
        drawn = self.drawn(self.carried(noise, source, code), code, self.code(source))
        return Edited(drawn.x, s=self.styles(code), evaluations=noise.evaluations + drawn.evaluations)

    def noise(self, source: Source, keep: bool = False) -> Sampled:
        """What the source's pictures come from. keep: the whole way there."""
        denoiser, walk = self.backbones.denoiser, self.params.walk
        return self.known.once(
            f"noise {keep}",
            source,
            lambda: ode_solvers.encode(
                denoiser, source.image, self.told(self.code(source)), walk, denoiser.objective, keep
            ),
        )

    def carried(self, noise: Sampled, source: Source, s: Tensor) -> Sampled:
        """The noise with `carry` times the generator's change, from source.s to s [B,S], in the picture it hides."""
        params = self.params
        if not isinstance(params, Partial) or not params.carry:
            return noise
        draw, top = self.backbones.generator.synthesis, params.walk.count
        unedited = self.known.once("unedited", source, lambda: draw(source.s, source.w_plus))
        change = draw(s, source.w_plus) - unedited
        factors = [params.carry * ode_solvers.signal(number, params.walk) for number in (top - 1, top)]
        below, x = (state + factor * change for state, factor in zip((noise.path[-2], noise.x), factors, strict=True))
        return Sampled(x, noise.evaluations, (below, x))

    def drawn(self, noise: Sampled, s: Tensor, own: Tensor | None = None, held: Held | None = None) -> Sampled:
        """Pictures of the style s [B,S] out of the noise; guided away from those of `own`, where that is given."""
        denoiser, guidance = self.backbones.denoiser, self.params.guidance
        if own is None or guidance == 1:
            return ode_solvers.decode(denoiser, noise, self.told(s), self.params.walk, denoiser.objective, held)
        before = self.told(own)

        def guided(x: Tensor, t: Tensor, told: Tensor) -> Tensor:
            return torch.lerp(denoiser(x, t, before), denoiser(x, t, told), guidance)

        down = ode_solvers.decode(guided, noise, self.told(s), self.params.walk, denoiser.objective, held)
        return Sampled(down.x, 2 * down.evaluations)


@dataclass(frozen=True)
class Walker(Decoder, Mover):
    """Moves s and decodes whole pictures."""

    params: Settings


@dataclass(frozen=True)
class Inside(Walker):
    """Decodes inside the mask of the contrast; outside it are the input's own states, and pixels."""

    params: Masked

    @torch.no_grad()
    def edit(self, source: Source, direction: Direction, strength: float) -> Edited:
        s, noise = self.moved(source, direction, strength), self.noise(source, keep=True)
        mask = self.mask(source, s)
        led = self.carried(noise, source, s)
        path = tuple(torch.where(mask > 0, *both) for both in zip(led.path[-2:], noise.path[-2:], strict=True))
        start = Sampled(path[-1], noise.evaluations, path)
        drawn = self.drawn(start, s, source.s, lambda number, x: torch.where(mask > 0, x, noise.path[number]))
        evaluations = noise.evaluations + drawn.evaluations + 2 * self.params.draws
        return Edited(drawn.x, s=s, mask=mask, evaluations=evaluations)

    def mask(self, source: Source, s: Tensor) -> Tensor:
        """Where a change of style from source.s to s [B,S] shows, [B,1,R,R] of 0 and 1 (DiffEdit, section 3.2).

        What the denoiser says under both styles of the same noisy pictures is compared in squares of `cell` pixels;
        those with more than `cut` of the most there is are in. Where nothing stands out, nothing is.
        """
        params, image = self.params, source.image
        if image.shape[-1] % params.cell:
            raise InputError(f"pictures of {image.shape[-1]} pixels are no whole cells of {params.cell}: change cell")
        own, other = self.told(source.s), self.told(source.s + params.amplify * (s - source.s))
        objective = self.backbones.denoiser.objective
        t = torch.full((len(image),), ode_solvers.time_of(params.noise, objective), device=image.device)
        chance = torch.Generator().manual_seed(params.seed)
        noises = torch.randn(params.draws, 1, *image.shape[1:], generator=chance).to(image)  # for all people alike
        noisy = [ode_solvers.mixed(image, noise.expand_as(image), t, objective) for noise in noises]
        before = self.known.once("answers", source, lambda: [self.says(x, t, own) for x in noisy])
        after = (self.says(x, t, other) for x in noisy)
        steps = [(b - a).abs().mean(dim=1, keepdim=True) for a, b in zip(before, after, strict=True)]
        contrast = torch.stack(steps).sum(dim=0)
        cells = F.avg_pool2d(contrast, params.cell)
        flat = cells.flatten(1)
        whole = cells.amax(dim=(2, 3), keepdim=True)
        if params.clamp == "mean":
            whole = CLAMP * cells.mean(dim=(2, 3), keepdim=True)
        inside = cells > params.cut * whole
        stands_out = flat.amax(dim=1) > FLAT * flat.median(dim=1).values
        found = (inside & stands_out[:, None, None, None]).to(image)
        return F.interpolate(found, size=image.shape[2:], mode="nearest")
