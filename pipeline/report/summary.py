"""Introduction of the page, written from metrics.json: what was evaluated, the results, how reliable they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.editors import label
from pipeline.evaluation import REFERENCES, SEPARATE_SPLITS, paper_claims
from pipeline.evaluation.bootstrap import Metric

WEAKEST = 3  # prompts named as the weakest


def paragraphs(metrics: Mapping[str, Any], splits: Mapping[str, str], drawn: bool = True) -> list[tuple[str, str]]:
    """(heading, paragraph) for what `metrics`, the content of metrics.json, has numbers of.

    splits: of the prompts, by their text
    drawn: test images are drawn portraits, which no network was trained on
    """
    editors = {name: row for name, row in metrics["editors"].items() if name not in REFERENCES}
    if not editors:
        return []
    parts = (
        ("Evaluation", _evaluation(editors, splits, drawn)),
        ("Results", _results(editors, splits)),
        ("Reliability", _reliability(metrics)),
    )
    return [(heading, " ".join(sentences)) for heading, sentences in parts if sentences]


def _evaluation(editors: Mapping[str, Any], splits: Mapping[str, str], drawn: bool) -> list[str]:
    texts = {text for row in editors.values() for text in row.get("prompts", {})}
    counts = sorted({int(row["images"]["value"]) for row in editors.values() if _value(row.get("images")) is not None})
    unseen, combined = (sum(splits.get(text) == split for text in texts) for split in SEPARATE_SPLITS)
    images = f" on {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} test images" if counts else ""
    return [
        f"{_count(len(editors), 'editor')} applied {_count(len(texts), 'prompt')}"
        + (f", {unseen} of them in words that no network was trained on," if unseen else "")
        + (f"{' and' if unseen else ','} {combined} that ask for several attributes," if combined else "")
        + f"{images}{' of portraits that no network was trained on' if images and drawn else ''}."
        + " Every editor uses one setting for all prompts."
    ]


def _results(editors: Mapping[str, Any], splits: Mapping[str, str]) -> list[str]:
    measured = {name: row for name, row in editors.items() if _value(row.get("reached")) is not None}
    if not measured:
        return []
    first, row = next(iter(measured.items()))
    sentences = [
        f"{label(first)} reached the requested attribute in {_share(row['reached'])} of its edits, and kept"
        f" {_share(row['kept'])} of the other attributes as in the counterfactual."
    ]
    close = {name: row for name, row in measured.items() if _value(row.get("psnr")) is not None}
    if len(close) > 1:
        best = max(close, key=lambda name: close[name]["psnr"]["value"])
        psnr = f"{close[best]['psnr']['value']:.1f} dB PSNR ({close[best]['images']['value']:.0f} images)"
        if best == first:
            sentences.append(f"It is also the closest to the counterfactuals, at {psnr}.")
        else:
            shares = f"it reached {_share(close[best]['reached'])} and kept {_share(close[best]['kept'])}"
            sentences.append(f"{label(best)} is the closest to the counterfactuals, at {psnr}: {shares}.")
    seen = {text: _value(leaf.get("reached")) for text, leaf in row["prompts"].items() if splits.get(text) == "seen"}
    ranked = sorted((value, text) for text, value in seen.items() if value is not None)
    if len(ranked) > WEAKEST:
        named = ", ".join(f"“{text}” ({100 * value:.0f} %)" for value, text in ranked[:WEAKEST])
        sentences.append(f"Its weakest prompts are {named}.")
    for split, prompts in zip(SEPARATE_SPLITS, ("in words that no network was trained on", "for several attributes")):
        if (value := _value(row.get(split, {}).get("reached"))) is not None:
            sentences.append(f"For prompts {prompts}, it reached {100 * value:.0f} %.")
    return sentences


def _reliability(metrics: Mapping[str, Any]) -> list[str]:
    sentences = []
    if tests := [test["verdict"] for row in paper_claims.table(metrics) for test in row["rows"]]:
        holds, fails, undecided = map(tests.count, (paper_claims.HOLDS, paper_claims.FAILS, paper_claims.OPEN))
        sentences.append(
            f"Of {len(tests)} differences that test the paper's claims below, {holds} hold, {fails} do not hold,"
            f" {undecided} are undecided."
        )
    mean, weakest = (_value(metrics.get("oracle", {}).get(key)) for key in ("mean", "min"))
    if mean is not None and weakest is not None:
        sentences.append(
            f"The oracle that reads attributes is right in {100 * mean:.1f} % of unseen portraits on average, and in"
            f" {100 * weakest:.0f} % for its weakest attribute."
        )
    return sentences


def _value(leaf: Metric | None) -> float | None:
    return None if leaf is None else leaf.get("value")


def _share(leaf: Metric) -> str:
    """84 % (83 to 86)"""
    value, low, high = (leaf[key] for key in ("value", "low", "high"))
    spread = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"
    return f"{100 * value:.0f} %{spread}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
