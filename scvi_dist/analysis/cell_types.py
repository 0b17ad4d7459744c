"""How probable each cell type is for each cell.

Axis suffixes: ``n`` cells, ``c`` types.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from scvi_dist.analysis.output import Layout, Out, stored, write
from scvi_dist.analysis.streaming import CellGroup, Cells, collect
from scvi_dist.module.cellassign import CellAssignModule

TYPE_PROBABILITIES = "X_cell_type_probabilities"
"""Key of obsm under which an output holds them."""


def type_probabilities(
    module: CellAssignModule, cells: Cells, types: Sequence[str], *, out: Out = None
) -> np.ndarray | str:
    """Probability of each type given the counts of each cell.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    types
        Name of each type; an output holds them, and the most probable one of each cell.
    out
        Write to this store instead of returning an array.

    Returns
    -------
    float32 ``[n, c]``; with ``out`` the URL of the store.
    """
    compute = partial(_probabilities, module=module)
    if out is not None:
        layout = Layout(
            obsm={TYPE_PROBABILITIES: module.n_labels},
            classes={TYPE_PROBABILITIES: tuple(types)},
        )
        return write(module, stored(cells), compute, out, layout, {"cell_types": module.n_labels})
    return collect(module, cells, compute)[TYPE_PROBABILITIES]


def _probabilities(group: CellGroup, module: CellAssignModule) -> dict[str, Tensor]:
    return {TYPE_PROBABILITIES: module.type_probabilities(group.tensors)}
