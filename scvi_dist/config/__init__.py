"""A run, as one YAML file says it: the owners' configs side by side, read strictly.

:func:`load_run` reads a file and applies ``key=value`` overrides, :func:`open_run_store` opens its
store and finds columns that are not there, :func:`dump_run` writes a config as a run file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from os import PathLike
from typing import Any

from scvi_dist.config.build import build, dotted_keys, to_tree
from scvi_dist.config.model_kinds import MODELS, ModelKind, kind_in, with_defaults
from scvi_dist.config.run_file import RunFile, dump, parse_run_file, read_run_file
from scvi_dist.config.secret_check import refuse_secrets_in
from scvi_dist.config.sections import (
    DataConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
    TrainSection,
)
from scvi_dist.config.store_check import open_run_store

_PLAN = "train.plan"
"""The section whose type depends on the model."""

__all__ = [
    "MODELS",
    "DataConfig",
    "ModelConfig",
    "ModelKind",
    "OutputConfig",
    "RunConfig",
    "TrainSection",
    "dump_run",
    "load_run",
    "open_run_store",
    "parse_run",
    "run_keys",
    "run_tree",
]


def load_run(path: str | PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file describes, with ``key=value`` overrides such as
    ``train.max_epochs=20``.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or a value has the wrong type, contradicts another, or is a
        secret.
    """
    return _built(read_run_file(path, overrides))


def parse_run(text: str, name: str = "the run", overrides: Sequence[str] = ()) -> RunConfig:
    """The same, from YAML text."""
    return _built(parse_run_file(text, name, overrides))


def run_tree(config: RunConfig) -> Mapping[str, Any]:
    """The config as nested plain values, every default written out."""
    return to_tree(config)


def dump_run(config: RunConfig) -> str:
    """The config as the text of a run file; reading it gives the config back."""
    return dump(run_tree(config))


@cache
def run_keys() -> tuple[str, ...]:
    """Every dotted key that a run file or an override may have."""
    plans = [plan for kind in MODELS.values() for plan in kind.plan_classes]
    of_plans = (key for plan in plans for key in dotted_keys(plan, f"{_PLAN}."))
    return tuple(dict.fromkeys((*dotted_keys(RunConfig), *of_plans)))


def _built(file: RunFile) -> RunConfig:
    kind = kind_in(file.tree)
    tree = with_defaults(file.tree, kind)
    train = tree.get("train")
    keys = train.get("plan") if isinstance(train, Mapping) else None
    plan = kind.plan_class(keys if isinstance(keys, Mapping) else {})
    config = build(RunConfig, tree, replace(file, known_keys=run_keys(), types={_PLAN: plan}))
    refuse_secrets_in(config)
    return config
