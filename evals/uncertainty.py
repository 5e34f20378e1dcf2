"""Standard errors of means and ratios, by query or by picture.

Several queries about one picture are not independent: their residuals are summed by picture first
(the cluster-robust variance), which for clusters of one is the usual formula.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np


def mean_se(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of a mean; NaN below two clusters.

    Args:
        clusters: A value each; None where each stands alone.
    """
    return ratio_se(values, [1.0] * len(values), clusters)


def ratio_se(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """Standard error of sum(numerators) / sum(denominators), linearised; NaN below two clusters.

    Nats per token over documents is such a ratio: tokens of a document are not independent.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(top) == 0:
        return math.nan
    residuals = top - (top.sum() / bottom.sum()) * bottom
    if clusters is not None:
        places = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
        residuals = np.bincount([places[c] for c in clusters], weights=residuals)
    n = len(residuals)
    if n < 2:
        return math.nan
    return float(math.sqrt(n / (n - 1) * np.sum(residuals**2)) / bottom.sum())


def deviation(scores: Sequence[float]) -> float:
    """Standard deviation over a few seeds; NaN for one."""
    return mean_se(scores) * math.sqrt(len(scores))
