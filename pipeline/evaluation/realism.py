"""Realism: a linear discriminator of rendered and generated images, which never sees an edit.

It stands in for the raters of the paper's table II. It mostly recognises the renderer, so an editor is to be compared
with its own images at strength 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import counterfactuals
from pipeline.evaluation.batching import in_batches
from pipeline.evaluation.bootstrap import Metric, absent, metric
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.network_quality import FRESH
from pipeline.models.classifiers import IdentityNet
from pipeline.runtime.precision import lowered

TRAINED_COUNT, TESTED_COUNT = 800, 400  # images of each kind for fitting, and others for its accuracy
FIRST = FRESH + 1_000_000  # first row id of the portraits that are rendered for it


@dataclass(frozen=True)
class Discriminator:
    """Linear classifier on features of the identity network: weights [F], bias; positive for rendered images.

    accuracy: on images that it was not fitted to.
    """

    network: IdentityNet
    weights: Tensor
    bias: float
    accuracy: Metric

    def look(self, images: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
        """Identity embeddings [B,K] of images [B,3,R,R], and 1 where an image is taken for rendered [B].

        half: in bfloat16, where that pays.
        """
        with lowered(images.device, half):
            features = self.network.features(images)
        return self.network.embed(features), self.rendered(features)

    def rendered(self, features: Tensor) -> Tensor:
        """1 where features [B,F] are taken for those of a rendered image: [B]."""
        return (features.float() @ self.weights.to(features.device) + self.bias > 0).float()


@torch.no_grad()
def train(context: EvaluationContext, samples: np.ndarray) -> Discriminator | None:
    """Fit to samples, uint8 [N,R,R,3], and as many rendered images; None without our identity network or six samples.

    Linear discriminant analysis with Ledoit-Wolf shrinkage, on the features below the embedding. Of fewer samples than
    wanted a third is for testing.
    """
    networks, count = context.networks, min(TRAINED_COUNT + TESTED_COUNT, len(samples))
    if count < 6 or networks.absent("identity") or not isinstance(networks.identity, IdentityNet):
        return None
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from pipeline import portraits

    identity, tested = networks.identity, count // 3
    renders = counterfactuals.render([portraits.sample(FIRST + row) for row in range(count)], samples.shape[1])

    generated, rendered = (
        in_batches(identity.features, images, context.batch, networks.device) for images in (samples[:count], renders)
    )
    training_features = torch.cat([generated[tested:], rendered[tested:]]).double().numpy()
    labels = np.repeat([0, 1], count - tested)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(training_features, labels)
    weights, bias = torch.from_numpy(fitted.coef_[0]).float(), float(fitted.intercept_[0])
    discriminator = Discriminator(identity, weights, bias, metric(math.nan))
    right = torch.cat([1 - discriminator.rendered(generated[:tested]), discriminator.rendered(rendered[:tested])])
    return replace(discriminator, accuracy=context.bootstrap.mean(right))


def discriminator_accuracy(context: EvaluationContext) -> dict[str, Metric]:
    """discriminator_accuracy: accuracy of the discriminator on rendered and generated images, 0.5 by chance."""
    if context.counterfactuals is None or context.samples is None:
        return {}
    note = context.networks.absent("identity") or "not computed: it needs our identity network, and samples"
    return {"discriminator_accuracy": context.discriminator.accuracy if context.discriminator else absent(note)}
