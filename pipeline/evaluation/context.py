"""Inputs and shared intermediate results of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.counterfactuals import CounterfactualSet, TestSet
from pipeline.evaluation.metrics import GaussianStats

if TYPE_CHECKING:
    import polars as pl

    from pipeline.editors import Editor
    from pipeline.evaluation.realism import Discriminator
    from pipeline.models.ode_solvers import Trajectory
    from pipeline.networks import Networks
    from pipeline.storage.domains import Prompt
    from pipeline.values import Inversion


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """Everything that one evaluation reads.

    edits: editor name -> artefact of schema `edits`; its rows without prompt are the editor's images at strength 0
    inversion: of the first n test images, as editors start from; None: the encoder's, of all
    fakes: [N,D], codes w of generated samples; None where there is no renderer to compare them with
    train_images: encoded images that add to the test's share of each attribute value
    mapper_validation: val_cos, val_mse and explained at the end of the mapper's training
    diffusion_editor, trajectory: name of the editor whose reconstruction is measured, and its steps and solver
    latent_editor: an editor and its strength, for edits of samples beside edits of inversions
    batch: images per pass; half: bfloat16 for identity network and oracles when they look at edits
    """

    networks: Networks
    test: TestSet
    edits: Mapping[str, Path]
    inversion: Inversion | None = None
    fakes: Tensor | None = None
    train_images: Sequence[bytes] = ()
    mapper_validation: Mapping[str, Any] = field(default_factory=dict)
    diffusion_editor: str | None = None
    trajectory: Trajectory | None = None
    latent_editor: tuple[Editor, float] | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    batch: int = 256
    half: bool = False


@dataclass(frozen=True)
class EditorResult:
    """metrics: of one editor, empty without cases. scores: a row per case. reconstruction: of the diffusion editor."""

    metrics: dict[str, Any]
    scores: pl.DataFrame
    reconstruction: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationContext(EvaluationInputs):
    """Inputs of an evaluation and what several measures need of them, computed once by `benchmark.prepare`.

    prompts: the domain's, by text
    counterfactuals: None for photographs, whose true attributes are unknown
    identities: id -> identity embedding [K] of the test image
    samples: uint8 [N,R,R,3], images of `fakes`
    discriminator: of rendered and generated images, None without samples
    inception: of the test images, for photographs
    results: by editor, in the order of `edits`
    """

    prompts: Mapping[str, Prompt]
    counterfactuals: CounterfactualSet | None = None
    identities: Mapping[int, Tensor] = field(default_factory=dict)
    samples: np.ndarray | None = None
    discriminator: Discriminator | None = None
    inception: GaussianStats | None = None
    results: Mapping[str, EditorResult] = field(default_factory=dict)
