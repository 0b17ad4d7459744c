"""The model of a run: made, sized, and told how to train."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from scvi_dist.config import RunConfig
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.model.training import FitSettings


def new_model(config: RunConfig, manager: AnnDataManager) -> Any:
    """A model with new weights, which follow from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.fit.seed)
        return config.model.model_class(manager, **arguments_of(config))


def count_parameters(config: RunConfig, schema: Schema) -> int:
    """Parameters of the model; neither is memory taken for them, nor is any cell read."""
    arguments = arguments_of(config)
    if "cell_type_markers" in arguments:
        schema = _of_markers(schema, arguments["cell_type_markers"])
    with torch.device("meta"):
        model = config.model.model_class._of_schema(schema, arguments)
    return sum(p.numel() for p in model.module.parameters())


def arguments_of(config: RunConfig) -> Mapping[str, Any]:
    """Arguments of the model besides the data."""
    markers = config.data.markers
    if markers is None:
        return config.model.arguments
    return {**config.model.arguments, "cell_type_markers": read_markers(markers)}


def read_markers(path: str) -> pd.DataFrame:
    """A table of marker genes: genes by name x cell types, 0 or 1.

    Raises
    ------
    ConfigError
        There is no such file, or it holds something else.
    """
    try:
        table = pd.read_csv(path, index_col=0)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigError(f"data.markers: {path} cannot be read: {reason}.") from error
    table.index = table.index.astype(str)
    kinds = [str(kind) for kind in table.dtypes]
    if table.empty or not all(kind.startswith(("int", "float", "bool")) for kind in kinds):
        raise ConfigError(
            f"data.markers: {path} is not a table of marker genes: expected a row for each gene, "
            f"by name, and a column of 0 and 1 for each cell type; seen {len(table)} rows and "
            f"columns {', '.join(map(str, table.columns[:5])) or 'none'}."
        )
    return table


def _of_markers(schema: Schema, markers: pd.DataFrame) -> Schema:
    known = set(schema.var_names)
    genes = tuple(gene for gene in markers.index if gene in known)
    if not genes:
        raise FieldNotFound(
            f"none of the {len(markers)} marker genes, such as {markers.index[0]!r}, is among the "
            f"store's {schema.n_vars} genes, such as {schema.var_names[0]!r}."
        )
    return replace(schema, var_names=genes)


def fit_settings(
    config: RunConfig, schema: Schema, total_steps: int | None, run_dir: Path, resume: bool
) -> FitSettings:
    """How to train on such data, for so many steps if that is known."""
    train = config.train
    plan: Any = train.plan_for(total_steps)
    is_measured = config.model.arguments.get("override_missing_proteins", False)
    lacks_proteins = schema.protein_batch_mask is not None and not is_measured
    if train.adversary_where_proteins_lack and lacks_proteins:
        plan = replace(plan, adversarial_classifier=True)
    return FitSettings(
        train=train.fit,
        plan=plan,
        split=config.data.split,
        loader=train.loader,
        sampling=train.sampling,
        labelled=train.labelled if config.model.kind.learns_labels else None,
        ray=train.ray_config if train.uses_ray else None,
        run_dir=str(run_dir),
        resume=resume,
    )
