"""Metrics with bootstrap intervals: the entries of metrics.json.

A *table* is [N,Q] float: N samples (test images), Q columns (prompts, or classes of an attribute), NaN where a sample
has no value. Samples are the unit of resampling: all values of one sample are drawn, or left out, together.
`scipy.stats.bootstrap` resamples indices, calls the statistic once a draw and knows no centred interval; counts of
samples as weights turn the same draws into one matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
Metric = dict[str, Any]  # value, low, high: float or None; note: the reason, where nothing could be computed


def metric(value: float, low: float | None = None, high: float | None = None) -> Metric:
    """One entry of metrics.json, rounded to six decimals; None in place of what is not finite."""
    return {"value": _rounded(value), "low": _rounded(low), "high": _rounded(high)}


def absent(note: str) -> Metric:
    """Entry of what could not be computed, with the reason."""
    return {**metric(math.nan), "note": note}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over samples, with 95 % intervals. repeats: number of draws, from `seed`."""

    repeats: int = 1000
    seed: int = 0

    def at_most(self, repeats: int) -> Bootstrap:
        """The same bootstrap with fewer draws, for statistics that are slow to compute."""
        return replace(self, repeats=min(self.repeats, repeats))

    def mean(self, table: Array | Tensor, groups: Sequence[object] | None = None, worst: bool = False) -> Metric:
        """Mean of a table [N,Q] (or [N]): over samples, then over the columns of a group, then over groups.

        So each prompt counts alike, however many samples it applies to.

        groups: group of each column; None: every column is its own
        worst: the smallest group instead of the mean over groups
        """
        table = np.asarray(table, dtype=np.float64)
        table = table[:, None] if table.ndim == 1 else table
        names = list(range(table.shape[1])) if groups is None else list(groups)
        members = [[i for i, name in enumerate(names) if name == group] for group in dict.fromkeys(names)]
        present = (~np.isnan(table)).astype(np.float64)
        filled = np.nan_to_num(table)
        if not members:
            return metric(math.nan)

        def statistic(weights: Array) -> Array:
            with np.errstate(invalid="ignore"):
                columns = (weights @ filled) / (weights @ present)
            grouped = np.stack([nanmean(columns[:, index]) for index in members], axis=1)
            if not worst:
                return nanmean(grouped)
            lowest = np.where(np.isnan(grouped), np.inf, grouped).min(1)
            return np.where(np.isinf(lowest), np.nan, lowest)

        return self.statistic(statistic, len(table))

    def statistic(self, statistic: Callable[[Array], Array], samples: int, centred: bool = False) -> Metric:
        """Any statistic of N samples; no interval for a single sample.

        statistic: weights [K,N], how often each draw holds each sample -> [K]
        centred: shift the draws so that they average to the value, for distances, which resampling inflates
        """
        if samples == 0:
            return metric(math.nan)
        value = float(statistic(np.ones((1, samples)))[0])
        if samples == 1 or not math.isfinite(value):
            return metric(value)
        drawn = statistic(_resamples(samples, self.repeats, self.seed))
        drawn = drawn[np.isfinite(drawn)]
        if not drawn.size:
            return metric(value)
        if centred:
            drawn = np.maximum(drawn - drawn.mean() + value, 0)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return metric(value, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _resamples(samples: int, repeats: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.multinomial(samples, np.full(samples, 1 / samples), size=repeats).astype(np.float64)


def nanmean(table: Array) -> Array:
    """Row means of [N,K] without NaN; NaN, and no warning as of `np.nanmean`, for a row of NaN alone."""
    present = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(present, table, 0).sum(1) / present.sum(1)
