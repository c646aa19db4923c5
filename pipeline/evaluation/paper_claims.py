"""What the paper claims, in our words, and what the numbers here say to each.

A claim compares two editors on the very same people and prompts, or is a difference in metrics.json that was measured
on the same people. The verdict is the interval's: the claim holds where all of it is above 0, does not hold where all
of it is below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import Draws, Leaf
from pipeline.report.edit_grid import label

if TYPE_CHECKING:
    import polars as pl

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Claim:
    """name: in metrics.json. text: what is claimed; source: where. More of every measure is better.

    better, worse: editors; or, without measures, `better` is the path of a difference in metrics.json.
    split: of the prompts that decide.
    """

    name: str
    text: str
    source: str
    better: str
    worse: str = ""
    measures: tuple[str, ...] = ()
    split: str = "seen"


def _against(editor: str, called: str, source: str = "table I") -> Claim:
    text = f"DeltaEdit-G does what was asked, and less besides, better than {called}"
    measures = ("reached", "kept", "clip_direction", "identity", "psnr_input", "identity_input")
    return Claim(f"against_{editor}", text, source, "deltaedit_g", editor, measures)


CLAIMS = (
    Claim(
        "deltas_aligned",
        "CLIP's differences of two pictures and of their texts point the same way; those of strangers do not",
        "section 3, figure 2",
        "clip.delta_cos_gap",
    ),
    Claim(
        "deltas_retrieve",
        "Differences of pictures find their texts better than the embeddings themselves do",
        "section 3",
        "clip.retrieval_gain",
    ),
    Claim(
        "delta_condition",
        "A mapper told differences edits better than one told the goal itself (neither masked)",
        "table I, ablation",
        "deltaedit_g_unmasked",
        "clip_target",
        ("reached", "kept", "identity", "counterfactual_gain"),
    ),
    Claim(
        "style_space",
        "Moving style channels edits better than moving w+ (neither masked, both at one strength)",
        "table I, ablation",
        "deltaedit_g_unmasked",
        "deltaedit_g_wplus",
        ("reached", "kept", "identity", "counterfactual_gain"),
    ),
    Claim(
        "relevance_mask",
        "Masking channels (by relevance and agreement, the mapper told less too) keeps what the text does not name",
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
        "Words that no network was taught are followed too",
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
        "The diffusion model, by DDIM, gives its input back more closely than inversion in W+",
        "table III",
        "diffusion.ddim.ssim_over_inversion",
    ),
    Claim(
        "style_reconstructs",
        "Told a picture's style, DDIM gives it back more closely than told the mean style",
        "table III",
        "diffusion.ddim.ssim_over_mean_style",
    ),
    Claim(
        "mask_and_diffusion",
        "Inside a mask, DeltaEdit-D keeps more of the picture",
        "ours",
        "deltaedit_dm",
        "deltaedit_d",
        ("kept", "identity", "psnr"),
    ),
    Claim(
        "measured_effect",
        "Moving channels by the mean of the mapper and their measured effect keeps more",
        "ours",
        "deltaedit_gr",
        "deltaedit_g",
        ("kept", "identity", "psnr"),
    ),
    Claim(
        "on_the_photograph",
        "Laid onto the photograph, as far and where CLIP follows, DeltaEdit-G's change does more and keeps more",
        "ours",
        "deltaedit_gp",
        "deltaedit_g",
        ("reached", "kept", "identity", "psnr"),
    ),
    Claim(
        "without_diffusion",
        "That change, DeltaEdit-GP, does more and keeps more than DeltaEdit-D inside a mask",
        "ours",
        "deltaedit_gp",
        "deltaedit_dm",
        ("reached", "kept", "identity", "psnr"),
    ),
)


def tested(found: Mapping[str, Any], scores: pl.DataFrame, splits: Mapping[str, str], draws: Draws) -> dict[str, Any]:
    """The difference that decides each claim, by name and measure; none where a side is not there.

    found: metrics.json without the claims. scores: a row per editor and case, as in evaluation/scores.parquet. splits:
    of the prompts, by their text.
    """
    import polars as pl

    ran = set(scores["editor"].unique()) if scores.height else set()
    differences: dict[str, Any] = {}
    for claim in CLAIMS:
        if not claim.measures:
            differences[claim.name] = {"difference": _at(found, claim.better)}
        elif {claim.better, claim.worse} <= ran:
            asked = scores.filter(pl.col("prompt").is_in([text for text in splits if splits[text] == claim.split]))
            measures = [name for name in claim.measures if name in asked.columns]
            differences[claim.name] = {name: paired(asked, claim.better, claim.worse, name, draws) for name in measures}
    known = {
        name: {measure: leaf for measure, leaf in leaves.items() if leaf.get("value") is not None}
        for name, leaves in differences.items()
    }
    return {name: leaves for name, leaves in known.items() if leaves}


def table(found: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every claim for people to read, of a whole metrics.json; a row per measure has its leaf and verdict, None where
    it was not tested, and `full_leaf` and `full_verdict` by the metrics.json of another scale.
    """
    rows = []
    for claim in CLAIMS:
        here, there = ((known or {}).get("claims", {}).get(claim.name, {}) for known in (found, full))
        tests = [
            {"measure": name, "leaf": here.get(name), "full_leaf": there.get(name)}
            for name in dict.fromkeys([*here, *there])
        ]
        for test in tests:
            test |= {f"{at}verdict": verdict(test[f"{at}leaf"]) if test[f"{at}leaf"] else None for at in ("", "full_")}
        absent = [side for side in (claim.better, claim.worse) if side not in found["editors"]]
        note = f"{' and '.join(map(label, absent))} did not run" if claim.measures and absent else "not computed"
        sides = f"{label(claim.better)} against {label(claim.worse)}" if claim.measures else ""
        rows.append({"claim": claim, "sides": sides, "rows": tests, "note": None if here else note})
    return rows


def verdict(leaf: Leaf) -> str:
    """HOLDS, FAILS or OPEN, by the interval of a difference that is claimed to be positive."""
    low, high = leaf["low"], leaf["high"]
    if low is None or high is None:
        return OPEN
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def paired(scores: pl.DataFrame, better: str, worse: str, measure: str, draws: Draws) -> Leaf:
    """Mean difference of a measure between two editors over the cases that both edited.

    Every prompt counts alike; the interval is a bootstrap over people, who keep their pairs.
    """
    import polars as pl

    first, second = (
        scores.filter(pl.col("editor") == name).select("id", "prompt", pl.col(measure).cast(pl.Float64))
        for name in (better, worse)
    )
    both = first.join(second, on=["id", "prompt"], suffix="_worse").sort("id", "prompt")
    ids, person = np.unique(both["id"].to_numpy(), return_inverse=True)
    texts, column = np.unique(both["prompt"].to_numpy(), return_inverse=True)
    cells = np.full((len(ids), len(texts)), np.nan)
    cells[person, column] = (both[measure] - both[f"{measure}_worse"]).to_numpy()
    return metrics.interval(cells, draws=draws)


def _at(found: Mapping[str, Any], path: str) -> Leaf:
    node: Any = found
    for key in path.split("."):
        node = node.get(key, {})
    return node
