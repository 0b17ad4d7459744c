"""scvi-tools' registry: the nested dict that its models carry and its ``model.pt`` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.categories import Category, plain
from scvi_dist.data.fields import Categories
from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.errors import SchemaMismatch

SCVI_TOOLS_VERSION = "1.4.2"
"""The release of scvi-tools whose registry is written here."""

_SETUP_KEYS = (
    "layer",
    "batch_key",
    "labels_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)


def registry_of(schema: Schema, model_name: str, scvi_version: str) -> dict[str, Any]:
    """The registry of a schema, as ``scvi.data.AnnDataManager.registry`` has it.

    ``_scvi_uuid`` is left out: it belongs to an AnnData, and loading does not need it.
    """
    layer = schema.setup.layer_field
    fields = {
        layer.registry_key: {
            "data_registry": layer.data_registry(),
            "state_registry": layer.state_registry(schema.n_obs, schema.var_names),
            "summary_stats": layer.summary_stats(schema.n_obs, schema.var_names),
        }
    }
    for field in schema.setup.obs_fields:
        categories = schema.categories_of(field)
        fields[field.registry_key] = {
            "data_registry": field.data_registry(),
            "state_registry": field.state_registry(categories),
            "summary_stats": field.summary_stats(categories),
        }
    return {
        "scvi_version": scvi_version,
        "model_name": model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": _setup_args(schema.setup),
        "field_registries": fields,
    }


def _setup_args(setup: SetupArgs) -> dict[str, Any]:
    """The arguments of ``setup_anndata`` as a user of scvi-tools would have given them."""
    arguments = {name: getattr(setup, name) for name in _SETUP_KEYS}
    if setup.unlabeled_category is not None:
        arguments["unlabeled_category"] = setup.unlabeled_category
    return {name: list(v) if isinstance(v, tuple) else v for name, v in arguments.items()}


def schema_from_registry(
    registry: Mapping[str, Any], var_names: Sequence[str] | None = None
) -> Schema:
    """The schema in a registry that scvi-tools wrote; fields it has no use for are passed over.

    Raises
    ------
    SchemaMismatch
        A part is missing; names it.
    """
    where = f"the registry of a {registry.get('model_name') or 'model'} saved by scvi-tools"
    where += f" {registry.get('scvi_version', '(unknown release)')}"
    setup = _setup_from(_part(registry, "setup_args", where))
    fields = _part(registry, "field_registries", where)
    states = {key: _part(fields[key], "state_registry", where) for key in fields}
    counts = _part(states, REGISTRY_KEYS.X_KEY, where)
    names = counts.get("column_names") if var_names is None else var_names
    if names is None:
        raise SchemaMismatch(f"{where} holds no gene names; give them as var_names.")
    categories, joint = {}, {}
    for field in setup.obs_fields:
        if not field.is_categorical or field.is_empty:
            continue
        found = _categories_in(_part(states, field.registry_key, where), field.columns, where)
        if field.registry_key == REGISTRY_KEYS.CAT_COVS_KEY:
            joint = dict(zip(field.columns, found, strict=True))
        else:
            categories[field.registry_key] = found[0]
    return Schema(
        setup=setup,
        var_names=tuple(str(name) for name in names),
        n_obs=int(_part(counts, "n_obs", where)),
        categories=categories,
        joint_categories=joint,
    )


def _part(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise SchemaMismatch(f"{where} has no {key!r}; it has {', '.join(map(str, mapping))}.")
    return mapping[key]


def _setup_from(arguments: Mapping[str, Any]) -> SetupArgs:
    known = {name: arguments.get(name) for name in _SETUP_KEYS}
    return SetupArgs(**known, unlabeled_category=arguments.get("unlabeled_category"))


def _categories_in(state: Mapping[str, Any], columns: Sequence[str], where: str) -> Categories:
    """The categories that the state of one categorical field holds."""
    mappings: list[Sequence[Any]]
    if "categorical_mapping" in state:
        mappings = [state["categorical_mapping"]]
    else:
        # scvi-tools' data modules write "mapping" where its managers write "mappings".
        by_column = state.get("mappings", state.get("mapping", {}))
        mappings = [_part(by_column, column, where) for column in columns]
    return tuple(_plain_values(mapping, where) for mapping in mappings)


def _plain_values(mapping: Sequence[Any], where: str) -> tuple[Category, ...]:
    return tuple(plain(value, where) for value in mapping)
