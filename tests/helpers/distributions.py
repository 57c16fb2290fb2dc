"""Statistical checks of random draws: counts against probabilities, samples against distribution functions."""

import math
from collections.abc import Callable

import numpy as np


def likely(count: float, draws: int, probability: float) -> bool:
    """Return whether a count is within five standard deviations of a binomial distribution."""
    return abs(count - draws * probability) <= 5 * math.sqrt(draws * probability * (1 - probability))


def distance(sample: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the Kolmogorov-Smirnov statistic of a sample over the value that one sample in a million exceeds.

    The statistic is the largest difference between the sample's distribution function and `cdf`.
    """
    sample = np.sort(sample)
    below = np.arange(len(sample) + 1) / len(sample)
    expected = np.asarray(cdf(sample))
    largest = max(np.abs(expected - below[1:]).max(), np.abs(expected - below[:-1]).max())
    return float(largest / math.sqrt(math.log(2 / 1e-6) / 2 / len(sample)))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Return the distribution function of the standard normal distribution."""
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
