"""The metrics of training, as scvi-tools' users find them in ``model.history``."""

from collections.abc import Mapping, Sequence

import pandas as pd

History = dict[str, pd.DataFrame]
"""Metric -> one column of that name, indexed by epoch or step."""

BY_STEP = frozenset({"kl_weight"})
"""Metrics whose index is an optimizer step; that of all others is an epoch."""


def as_history(points: Mapping[str, Sequence[tuple[int, float]]]) -> History:
    """Metric -> ``(epoch or step, value)``, as tables."""
    return {
        name: pd.DataFrame(
            {name: [float(value) for _, value in series]},
            index=pd.Index([int(at) for at, _ in series], name=_index_name(name)),
        )
        for name, series in points.items()
    }


def continued(old: History | None, new: History) -> History:
    """The history of a model that was trained again: its epochs are counted on."""
    if not old:
        return new
    joined = dict(old)
    for name, table in new.items():
        if name in old:
            n = len(old[name])
            joined[name] = pd.concat([old[name], table.set_axis(range(n, n + len(table)))])
            joined[name].index.name = old[name].index.name
        else:
            joined[name] = table
    return joined


def _index_name(metric: str) -> str:
    return "step" if metric in BY_STEP else "epoch"
