"""Who drew this: the renderer, or the generator? A linear discriminator that learnt from both, and never saw an edit.

It asks what people are asked who judge whether an edit looks real (paper, table II), and answers less: what it knows by
is the hand that drew, so an editor is to be compared with what it makes of people before it edits them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import counterfactuals, metrics
from pipeline.evaluation.metrics import Draws, Leaf
from pipeline.evaluation.network_quality import FRESH, batches
from pipeline.models.classifiers import IdentityNet
from pipeline.runtime.precision import lowered
from pipeline.storage import images

if TYPE_CHECKING:
    from pipeline.networks import Backbones

TAUGHT, TRIED = 800, 400  # of each kind, pictures that it learns from, and others on which it is tried
FIRST = FRESH + 1_000_000  # of the row ids of people who are drawn for it


@dataclass(frozen=True)
class Discriminator:
    """weights [F] and bias of what the network sees. told_apart: accuracy on pictures that it did not learn from."""

    network: IdentityNet
    weights: Tensor
    bias: float
    told_apart: Leaf

    def look(self, images: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
        """images [B,3,R,R] -> whom they show, unit embeddings [B,K], and whether they look drawn, [B] of 0 and 1.

        half: in bfloat16, where that pays.
        """
        with lowered(images.device, half):
            features = self.network.features(images)
        return self.network.embed(features), self.drawn(features)

    def drawn(self, features: Tensor) -> Tensor:
        """features [B,F] -> [B] of 0 and 1."""
        return (features.float() @ self.weights.to(features.device) + self.bias > 0).float()


@torch.no_grad()
def discriminator(backbones: Backbones, samples: np.ndarray, batch: int, draws: Draws) -> Discriminator | None:
    """Learnt from samples, uint8 [N,R,R,3], and as many people drawn for this alone; None without our network.

    Linear discriminant analysis, its covariance shrunk as Ledoit and Wolf do, on what the identity network sees before
    it names a person. Fewer samples are shared out two to one; of less than six nothing is learnt.
    """
    count = min(TAUGHT + TRIED, len(samples))
    if count < 6 or backbones.absent("identity") or not isinstance(backbones.identity, IdentityNet):
        return None
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from pipeline import portraits

    identity, tried = backbones.identity, count // 3
    renders = counterfactuals.render([portraits.sample(FIRST + row) for row in range(count)], samples.shape[1])

    def seen(pictures: np.ndarray) -> Tensor:
        parts = (images.from_uint8(pictures[part]).to(backbones.device) for part in batches(count, batch))
        return torch.cat([identity.features(part).cpu() for part in parts])

    made, drawn = seen(samples[:count]), seen(renders)
    known = torch.cat([made[tried:], drawn[tried:]]).double().numpy()
    labels = np.repeat([0, 1], count - tried)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(known, labels)
    weights, bias = torch.from_numpy(fitted.coef_[0]).float(), float(fitted.intercept_[0])
    found = Discriminator(identity, weights, bias, metrics.leaf(math.nan))
    right = torch.cat([1 - found.drawn(made[:tried]), found.drawn(drawn[:tried])])
    return replace(found, told_apart=metrics.interval(right, draws=draws))
