"""Does a picture look drawn, or made by a generator? A discriminator that saw renders and samples, and never an edit.

It stands in for people who are asked whether an edit looks real (paper, table II). A linear one suffices, on what the
identity network sees before it names a person: details that a generator blurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline import metrics
from pipeline.foundations import batches
from pipeline.metrics import Draws, Leaf
from pipeline.recognition import IdentityNet

if TYPE_CHECKING:
    from pipeline.backbones import Backbones
    from pipeline.truth import TestSet

TAUGHT, TRIED = 1000, 500  # of each kind, pictures that it learns from, and others on which it is tried


@dataclass(frozen=True)
class Discriminator:
    """weights [F] and bias of what the network sees. told_apart: accuracy on pictures that it did not learn from."""

    network: IdentityNet
    weights: Tensor
    bias: float
    told_apart: Leaf

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B,3,R,R] -> whom they show, unit embeddings [B,K], and whether they look drawn, [B] of 0 and 1."""
        features = self.network.features(images)
        return self.network.embed(features), self.drawn(features)

    def drawn(self, features: Tensor) -> Tensor:
        """features [B,F] -> [B] of 0 and 1."""
        return (features.float() @ self.weights.to(features.device) + self.bias > 0).float()


@torch.no_grad()
def discriminator(backbones: Backbones, test: TestSet, w: Tensor, batch: int, draws: Draws) -> Discriminator | None:
    """Learnt from the last test people, whom no editor edits, and as many samples, w [N,D]; None without our network.

    Linear discriminant analysis, its covariance shrunk as Ledoit and Wolf do. Fewer pictures are shared out two to one.
    """
    if backbones.absent("identity") or not isinstance(backbones.identity, IdentityNet):
        return None
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    identity, generator = backbones.identity, backbones.generator
    count = min(TAUGHT + TRIED, len(w), len(test.ids))
    tried = count // 3

    def sampled(part: slice) -> Tensor:
        return generator(generator.repeat(w[:count][part].to(backbones.device))).float().clamp(-1, 1)

    pictures = test.images[-count:]
    made = torch.cat([identity.features(sampled(part)).cpu() for part in batches(count, batch)])
    drawn = torch.cat([identity.features(pictures[part].to(backbones.device)).cpu() for part in batches(count, batch)])
    known = torch.cat([made[tried:], drawn[tried:]]).double().numpy()
    labels = np.repeat([0, 1], count - tried)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(known, labels)
    weights, bias = torch.from_numpy(fitted.coef_[0]).float(), float(fitted.intercept_[0])
    found = Discriminator(identity, weights, bias, metrics.leaf(math.nan))
    right = torch.cat([1 - found.drawn(made[:tried]), found.drawn(drawn[:tried])])
    return replace(found, told_apart=metrics.interval(right, draws=draws))
