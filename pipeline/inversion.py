"""Inversion of images into W+: the encoder's codes (e4e), refined by gradient descent for images that are edited.

Inversion by the diffusion model is `pipeline.models.ode_solvers`.

The encoder's codes edit well but lose details. Descent on the pixel error and, since pixels alone end in a blur, on the
error in the encoder's own features (LPIPS needs a network of photographs) brings them back; a penalty keeps the result
near the encoder's codes, as in hybrid inversions (II2S; PTI's first phase). What no code can represent is fitted in the
same way as a residual of the generator's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam  # the class imports torch's compiler: 1.5 s of `deltaspace edit`

from pipeline.models.stylegan2 import Generator
from pipeline.runtime.precision import lowered
from pipeline.sampling import BatchParams, fixed_batches

BETAS = 0.9, 0.99
LEARNING_RATE = 0.15  # in units of the distance between codes
PROXIMITY = 0.005  # weight of the distance from the encoder's codes, in the same units
FEATURES = 0.2  # weight of the features
DETAIL = 1 / 3  # step size of a residual, in root mean squares of the features; 1 leaves noise on plain backgrounds


class FeatureEncoder(Protocol):
    """Encoder such as `pipeline.models.e4e.Encoder`: codes [B,L,D], and features whose channels have unit length."""

    def __call__(self, images: Tensor, /) -> Tensor: ...
    def features(self, images: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class InvertParams(BatchParams):
    """Section `invert` of params.yaml.

    refine: steps of descent for images that are edited, 0 for none.
    detail: pixels of the generator's layer that gets a residual, 0 for none.
    """

    refine: int
    detail: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 0:
            raise ValueError(f"{self.refine} steps of refinement: give 0 or more")
        if self.detail and (self.detail < 4 or self.detail & (self.detail - 1)):
            raise ValueError(f"detail of {self.detail} pixels: give 0, or a power of two from 4 to the image's size")

    @property
    def seeks_detail(self) -> bool:
        """Whether a residual is fitted."""
        return self.detail > 0 and self.refine > 0


def errors(generator: Generator, images: Tensor, w_plus: Tensor) -> Tensor:
    """Mean squared error [B] of pixels in [0,1] between images [B,3,R,R] and the images of w_plus [B,L,D]."""
    return ((generator(w_plus).clamp(-1, 1) - images) / 2).square().mean(dim=(1, 2, 3))


def refine(encoder: FeatureEncoder, generator: Generator, images: Tensor, w_plus: Tensor, steps: int) -> Tensor:
    """Refine w_plus [B,L,D] by `steps` of descent towards images [B,3,R,R]; rows whose error does not fall stay.

    Rows are independent.
    """
    if not steps:
        return w_plus
    step_size = (w_plus - generator.w_mean).square().mean(dim=(1, 2), keepdim=True).sqrt()
    refined = _descend(encoder, generator, images, w_plus, step_size, steps)
    better = errors(generator, images, refined) < errors(generator, images, w_plus)
    return torch.where(better[:, None, None], refined, w_plus)


def refine_s(
    encoder: FeatureEncoder, generator: Generator, images: Tensor, w_plus: Tensor, step_size: Tensor, steps: int
) -> Tensor:
    """Refine the style codes s [B,S] of w_plus [B,L,D] as `refine` does codes; toRGB layers keep the styles of w_plus.

    images: [B,3,R,R] to come near to.
    step_size: standard deviation of the style channels [S].
    steps: of descent.
    """

    def draw(s: Tensor) -> Tensor:
        return generator.synthesis(s, w_plus)

    return _improve(encoder, draw, images, generator.styles(w_plus), step_size, steps)


def missing_detail(
    encoder: FeatureEncoder, generator: Generator, images: Tensor, w_plus: Tensor, size: int, steps: int
) -> Tensor:
    """Residual [B,C,size,size] of the generator's features that w_plus [B,L,D] lack of images [B,3,R,R].

    It is fitted by `steps` of descent from zero, and is zero where that does not lower the error.
    """
    s = generator.styles(w_plus)
    with torch.no_grad():
        plain, below = generator.features_at(size, s, w_plus)

    def draw(added: Tensor) -> Tensor:
        return generator.synthesis_from(size, plain + added, below, s, w_plus)

    step_size = DETAIL * plain.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return _improve(encoder, draw, images, torch.zeros_like(plain), step_size, steps)


def _improve(
    encoder: FeatureEncoder,
    draw: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    step_size: Tensor,
    steps: int,
) -> Tensor:
    """`_descend`, with the rows of `start` [B,...] where the pixel error does not fall."""
    descended = _descend(encoder, draw, images, start, step_size, steps)

    @torch.no_grad()
    def error(codes: Tensor) -> Tensor:
        return (draw(codes).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))

    better = error(descended) < error(start)
    return torch.where(better.view(-1, *[1] * (start.dim() - 1)), descended, start)


def _descend(
    encoder: FeatureEncoder,
    draw: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    step_size: Tensor,
    steps: int,
) -> Tensor:
    """Codes [B,...] by Adam from `start`, towards drawing images [B,3,R,R].

    step_size: size of a usual step, of shape [...] for all rows or [B,1,...] each.
    """
    with torch.no_grad(), lowered(images.device):
        target = encoder.features(images)
    with torch.enable_grad():
        moved = torch.zeros_like(start, requires_grad=True)
        mean, square, count = torch.zeros_like(start), torch.zeros_like(start), torch.zeros(())
        for step in range(steps):
            with lowered(images.device):
                drawn = draw(start + step_size * moved)
                features = encoder.features(drawn)
            loss = (drawn - images).square().mean(dim=(1, 2, 3)).sum()
            for one, other in zip(features, target, strict=True):
                loss = loss + FEATURES * (1 - (one * other).sum(dim=1).mean(dim=(1, 2))).sum()
            loss = loss + PROXIMITY * moved.square().mean(dim=tuple(range(1, moved.dim()))).sum()
            (gradient,) = torch.autograd.grad(loss, moved)
            with torch.no_grad():
                adam(
                    *([moved], [gradient], [mean], [square], [], [count]),
                    foreach=False,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=LEARNING_RATE * min(1.0, 2 * (1 - step / steps)),
                    weight_decay=0.0,
                    eps=1e-8,
                    maximize=False,
                )
    return start + step_size * moved.detach()


@torch.no_grad()
def details(
    encoder: FeatureEncoder, generator: Generator, photos: Tensor, w_plus: Tensor, params: InvertParams
) -> Tensor:
    """`missing_detail` of inversions, in batches: [N,C,r,r] on the CPU, float16 as in the artefact.

    photos: [N,3,R,R] in [-1,1].
    w_plus: codes [N,L,D] of the photos.
    params: size of the residual (`detail`), steps (`refine`) and batch.
    """
    device = generator.w_mean.device

    def step(images: Tensor, codes: Tensor) -> tuple[Tensor]:
        added = missing_detail(encoder, generator, images.to(device), codes.to(device), params.detail, params.refine)
        return (added.half().cpu(),)

    return fixed_batches(step, params.batch, photos, w_plus)[0]


@torch.no_grad()
def invert(
    encoder: FeatureEncoder, generator: Generator, photos: Tensor, batch: int, steps: int = 0
) -> tuple[Tensor, Tensor]:
    """Invert photos into w_plus [N,L,D]; also their `errors` [N]. Both on the CPU.

    photos: [N,3,R,R] in [-1,1].
    batch: photos per forward pass.
    steps: of `refine`, after the encoder.
    """
    device = generator.w_mean.device

    def step(images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(device)
        w_plus = refine(encoder, generator, images, encoder(images), steps)
        return w_plus.cpu(), errors(generator, images, w_plus).cpu()

    return fixed_batches(step, batch, photos)
