"""Numbers that are hashes of their places, for compiled loops.

Source
------
Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
"""

import numpy as np

from scvi_dist.kernels.compiled import compiled

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""From one place of a stream to the next."""
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@compiled(inlined=True)
def splitmix64(x: np.uint64) -> np.uint64:
    """64 bits; different numbers have different ones."""
    z = x + GAMMA
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)
