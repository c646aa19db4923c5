"""The report's first paragraphs, told from its numbers: what was asked, what came out, how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation import paper_claims
from pipeline.evaluation.metrics import Leaf
from pipeline.report.edit_grid import APART, FRAMES, label

WEAKEST = 3  # sentences that are named


def told(found: Mapping[str, Any], splits: Mapping[str, str], drawn: bool = True) -> list[tuple[str, str]]:
    """(heading, paragraph) for whatever metrics.json `found` has numbers of.

    splits: of the prompts, by their text. drawn: all networks were trained on other people than those who are edited.
    """
    paragraphs = (
        ("What was asked", _asked(found, splits, drawn)),
        ("What came out", _came_out(found, splits)),
        ("How sure that is", _sure(found)),
    )
    return [(heading, " ".join(sentences)) for heading, sentences in paragraphs if sentences]


def _proper(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in found["editors"].items() if name not in FRAMES}


def _asked(found: Mapping[str, Any], splits: Mapping[str, str], drawn: bool) -> list[str]:
    editors = _proper(found)
    if not editors:
        return []
    texts = {text for row in editors.values() for text in row.get("prompts", {})}
    people = sorted({int(row["people"]["value"]) for row in editors.values() if _value(row.get("people")) is not None})
    new, several = (sum(splits.get(text) == split for text in texts) for split in APART)
    on = f" on {' to '.join(map(str, dict.fromkeys((people[0], people[-1]))))} pictures" if people else ""
    return [
        f"{_count(len(editors), 'editor')} followed {_count(len(texts), 'sentence')}"
        + (f", {new} of them in words that no network was taught," if new else "")
        + (f"{' and' if new else ','} {several} that ask for several things at once," if several else "")
        + f"{on}{' of people whom no network has seen' if on and drawn else ''}, each with one setting for all."
    ]


def _came_out(found: Mapping[str, Any], splits: Mapping[str, str]) -> list[str]:
    editors = {name: row for name, row in _proper(found).items() if _value(row.get("reached")) is not None}
    if not editors:
        return []
    first, row = next(iter(editors.items()))
    sentences = [
        f"{label(first)} did what was asked in {_share(row['reached'])} of its edits, and left {_share(row['kept'])} of"
        " all else as it should be."
    ]
    close = {name: row for name, row in editors.items() if _value(row.get("psnr")) is not None}
    if len(close) > 1:
        nearest = max(close, key=lambda name: close[name]["psnr"]["value"])
        at = close[nearest]
        how = f"at {at['psnr']['value']:.1f} dB ({at['people']['value']:.0f} people)"
        if nearest == first:
            sentences.append(f"It also comes nearest to the right pictures, {how}.")
        else:
            sentences.append(
                f"Nearest to the right pictures comes {label(nearest)}, {how}: it did what was asked in"
                f" {_share(at['reached'])}, and kept {_share(at['kept'])}."
            )
    taught = {text: leaf for text, leaf in row["prompts"].items() if splits.get(text) == "seen"}
    asked = {text: leaf["reached"] for text, leaf in taught.items() if "reached" in leaf}
    known = sorted((leaf["value"], text) for text, leaf in asked.items() if leaf["value"] is not None)
    if len(known) > WEAKEST:
        named = ", ".join(f"“{text}” ({100 * value:.0f} %)" for value, text in known[:WEAKEST])
        sentences.append(f"{label(first)} follows worst: {named}.")
    if (new := _value(row.get("heldout", {}).get("reached"))) is not None:
        sentences.append(f"In words that no network was taught it reached {100 * new:.0f} %.")
    if (several := _value(row.get("combined", {}).get("reached"))) is not None:
        sentences.append(f"Asked for several things at once, it reached all of them in {100 * several:.0f} %.")
    return sentences


def _sure(found: Mapping[str, Any]) -> list[str]:
    sentences = []
    if tests := [test["verdict"] for row in paper_claims.table(found) for test in row["rows"]]:
        counts = [
            f"{tests.count(verdict)} {verdict}"
            for verdict in (paper_claims.HOLDS, paper_claims.FAILS, paper_claims.OPEN)
        ]
        counts = [text.replace("holds", "hold").replace("does not", "do not") for text in counts]
        sentences.append(f"Of {len(tests)} differences by which the claims below are tested, {', '.join(counts)}.")
    oracle = found.get("oracle", {})
    if _value(oracle.get("mean")) is not None and _value(oracle.get("min")) is not None:
        sentences.append(
            f"The oracle that judges is right about {100 * oracle['mean']['value']:.1f} % of the attributes of people"
            f" whom it has never seen, and about {100 * oracle['min']['value']:.0f} % of its weakest."
        )
    return sentences


def _value(leaf: Leaf | None) -> float | None:
    return None if leaf is None else leaf.get("value")


def _share(leaf: Leaf) -> str:
    """84 % (83 to 86)"""
    value, low, high = (leaf[key] for key in ("value", "low", "high"))
    spread = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"
    return f"{100 * value:.0f} %{spread}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
