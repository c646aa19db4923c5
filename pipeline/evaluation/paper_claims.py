"""Claims of the paper and of this repository, each with the measured difference that decides it.

A claim compares two editors on the same images and prompts, or names a difference in metrics.json that was measured on
the same images. It holds where the whole interval of the difference is above 0, and does not where it is below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.editors import label
from pipeline.evaluation.bootstrap import Bootstrap, Metric

if TYPE_CHECKING:
    import polars as pl

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
ABLATION = ("reached", "kept", "identity", "counterfactual_gain")
QUALITY = ("reached", "kept", "identity", "psnr")


@dataclass(frozen=True)
class Claim:
    """name: in metrics.json; text and source: the claim and its section in the paper; more of every measure is better.

    better, worse: editors; without measures, `better` is the path of a difference in metrics.json
    split: of the prompts that decide
    """

    name: str
    text: str
    source: str
    better: str
    worse: str = ""
    measures: tuple[str, ...] = ()
    split: str = "seen"


def _against(editor: str, name: str, source: str = "table I") -> Claim:
    text = f"DeltaEdit-G follows the text, and keeps the rest, better than {name}"
    measures = ("reached", "kept", "clip_direction", "identity", "psnr_input", "identity_input")
    return Claim(f"against_{editor}", text, source, "deltaedit_g", editor, measures)


CLAIMS = (
    Claim(
        "deltas_aligned",
        "CLIP's differences of two images and of their own texts are aligned; those of unrelated pairs are not",
        "section 3, figure 2",
        "clip.delta_cos_gap",
    ),
    Claim(
        "deltas_retrieve",
        "Differences of images retrieve their texts better than the embeddings themselves do",
        "section 3",
        "clip.retrieval_gain",
    ),
    Claim(
        "delta_condition",
        "A mapper conditioned on differences edits better than one conditioned on the target (neither masked)",
        "table I, ablation",
        "deltaedit_g_unmasked",
        "clip_target",
        ABLATION,
    ),
    Claim(
        "style_space",
        "Edits in style space are better than edits in w+ (neither masked, both at one strength)",
        "table I, ablation",
        "deltaedit_g_unmasked",
        "deltaedit_g_wplus",
        ABLATION,
    ),
    Claim(
        "relevance_mask",
        "The channel mask (relevance, same sign, condition without noise) keeps what the text does not name",
        "figure 12",
        "deltaedit_g",
        "deltaedit_g_unmasked",
        ("kept", "identity", "counterfactual_gain"),
    ),
    _against("styleclip_gd", "StyleCLIP-GD"),
    _against("stylemc", "StyleMC"),
    _against("styleclip_lm", "StyleCLIP-LM"),
    _against("styleclip_op", "StyleCLIP-OP", "ours; the paper compares their times"),
    Claim(
        "new_words",
        "Words that no network was trained on are followed too",
        "the method's promise",
        "deltaedit_g",
        "identity_editor",
        ("reached",),
        split="heldout",
    ),
    Claim(
        "diffusion_quality",
        "DeltaEdit-D keeps identity and quality better than DeltaEdit-G",
        "table IV",
        "deltaedit_d",
        "deltaedit_g",
        ("identity", "identity_input", "psnr", "psnr_input"),
    ),
    Claim(
        "diffusion_reconstructs",
        "DDIM reconstructs an image more closely than inversion in W+ does",
        "table III",
        "diffusion.ddim.ssim_over_inversion",
    ),
    Claim(
        "style_reconstructs",
        "Conditioned on an image's style, DDIM reconstructs it more closely than conditioned on the mean style",
        "table III",
        "diffusion.ddim.ssim_over_mean_style",
    ),
    Claim(
        "mask_and_diffusion",
        "Inside a mask, DeltaEdit-D keeps more of the image",
        "ours",
        "deltaedit_dm",
        "deltaedit_d",
        ("kept", "identity", "psnr"),
    ),
    Claim(
        "measured_effect",
        "The mean of the mapper's step and the measured effect of its channels keeps more",
        "ours",
        "deltaedit_gr",
        "deltaedit_g",
        ("kept", "identity", "psnr"),
    ),
    Claim(
        "on_the_photograph",
        "Applied to the input image, at the strength and in the region that CLIP confirms, DeltaEdit-G's edit does more"
        " and keeps more",
        "ours",
        "deltaedit_gp",
        "deltaedit_g",
        QUALITY,
    ),
    Claim(
        "without_diffusion",
        "That edit, DeltaEdit-GP, does more and keeps more than DeltaEdit-D inside a mask",
        "ours",
        "deltaedit_gp",
        "deltaedit_dm",
        QUALITY,
    ),
)


def differences(
    numbers: Mapping[str, Any], scores: pl.DataFrame, splits: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, dict[str, Metric]]:
    """The differences that decide claims, by claim and measure; only those that were measured.

    numbers: metrics.json without claims
    scores: a row per editor and case, as in evaluation/scores.parquet
    splits: of the prompts, by text
    """
    import polars as pl

    ran = set(scores["editor"].unique()) if scores.height else set()
    by_claim: dict[str, dict[str, Metric]] = {}
    for claim in CLAIMS:
        measured: dict[str, Metric] = {}
        if not claim.measures:
            measured = {"difference": _at(numbers, claim.better)}
        elif {claim.better, claim.worse} <= ran:
            rows = scores.filter(pl.col("prompt").is_in([text for text in splits if splits[text] == claim.split]))
            names = [name for name in claim.measures if name in rows.columns]
            measured = {name: paired(rows, claim.better, claim.worse, name, bootstrap) for name in names}
        measured = {name: leaf for name, leaf in measured.items() if leaf.get("value") is not None}
        by_claim |= {claim.name: measured} if measured else {}
    return by_claim


def paired(scores: pl.DataFrame, better: str, worse: str, measure: str, bootstrap: Bootstrap) -> Metric:
    """Mean difference of a measure between two editors, over the cases that both edited; every prompt counts alike."""
    import polars as pl

    first, second = (
        scores.filter(pl.col("editor") == name).select("id", "prompt", pl.col(measure).cast(pl.Float64))
        for name in (better, worse)
    )
    both = first.join(second, on=["id", "prompt"], suffix="_worse").sort("id", "prompt")
    ids, image = np.unique(both["id"].to_numpy(), return_inverse=True)
    texts, column = np.unique(both["prompt"].to_numpy(), return_inverse=True)
    cells = np.full((len(ids), len(texts)), np.nan)
    cells[image, column] = (both[measure] - both[f"{measure}_worse"]).to_numpy()
    return bootstrap.mean(cells)


def table(numbers: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every claim as rows for the page: per measure its metric (leaf) and verdict, None where it was not tested.

    numbers: content of metrics.json; full: of the same file at another scale, for `full_leaf` and `full_verdict`
    """
    rows = []
    for claim in CLAIMS:
        default_run, full_run = ((run or {}).get("claims", {}).get(claim.name, {}) for run in (numbers, full))
        tests = [
            {"measure": name, "leaf": default_run.get(name), "full_leaf": full_run.get(name)}
            for name in dict.fromkeys([*default_run, *full_run])
        ]
        for test in tests:
            test |= {f"{at}verdict": verdict(test[f"{at}leaf"]) if test[f"{at}leaf"] else None for at in ("", "full_")}
        absent = [side for side in (claim.better, claim.worse) if side not in numbers["editors"]]
        note = f"{' and '.join(map(label, absent))} did not run" if claim.measures and absent else "not computed"
        sides = f"{label(claim.better)} against {label(claim.worse)}" if claim.measures else ""
        rows.append({"claim": claim, "sides": sides, "rows": tests, "note": None if default_run else note})
    return rows


def verdict(difference: Metric) -> str:
    """HOLDS, FAILS or OPEN, by the interval of a difference that is claimed to be positive."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return OPEN
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def _at(numbers: Mapping[str, Any], path: str) -> Metric:
    node: Any = numbers
    for key in path.split("."):
        node = node.get(key, {})
    return node
