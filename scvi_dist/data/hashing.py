"""A keyed hash of row numbers, for orders and draws that take no memory."""

import numpy as np


def splitmix64(x: np.ndarray) -> np.ndarray:
    """uint64 hash of uint64 numbers; different numbers have different hashes.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
