"""scvi-tools' registry: the nested dict that its models carry and its ``model.pt`` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.categories import Category, plain
from scvi_dist.data.fields import Categories
from scvi_dist.data.multimodal.mudata_setup import mudata_arguments, mudata_setup, with_modalities
from scvi_dist.data.proteins import ProteinMask
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
_PROTEIN_KEYS = {
    "protein_expression_obsm_key": "protein_key",
    "protein_names_uns_key": "protein_names_uns_key",
    "panel_key": "panel_key",
}
"""Further arguments of ``setup_anndata`` of a model of proteins -> what a setup calls them."""
_FIELDS = {
    "CellAssign": (
        REGISTRY_KEYS.SIZE_FACTOR_KEY,
        REGISTRY_KEYS.BATCH_KEY,
        REGISTRY_KEYS.CAT_COVS_KEY,
        REGISTRY_KEYS.CONT_COVS_KEY,
    )
}
"""Fields of obs of the models that have not all of them, in scvi-tools' order."""


def registry_of(schema: Schema, model_name: str, scvi_version: str) -> dict[str, Any]:
    """The registry of a schema, as ``scvi.data.AnnDataManager.registry`` has it.

    ``_scvi_uuid`` is left out: it belongs to an AnnData, and loading does not need it.
    """
    setup, layer = schema.setup, schema.setup.layer_field
    fields = {
        layer.registry_key: {
            "data_registry": layer.data_registry(),
            "state_registry": layer.state_registry(schema.n_obs, schema.var_names),
            "summary_stats": layer.summary_stats(schema.n_obs, schema.var_names),
        }
    }
    by_key = {field.registry_key: field for field in setup.obs_fields}
    for key in _FIELDS.get(model_name, by_key):
        field = by_key[key]
        categories = schema.categories_of(field)
        fields[key] = {
            "data_registry": field.data_registry(),
            "state_registry": field.state_registry(categories),
            "summary_stats": field.summary_stats(categories),
        }
    proteins = setup.protein_field
    if proteins is not None:
        names = schema.protein_names
        fields[proteins.registry_key] = {
            "data_registry": proteins.data_registry(),
            "state_registry": proteins.state_registry(names, schema.protein_batch_mask),
            "summary_stats": proteins.summary_stats(names),
        }
    if schema.minified is not None:
        fields |= schema.minified.registries()
    is_mudata = setup.modalities is not None
    return {
        "scvi_version": scvi_version,
        "model_name": model_name,
        "setup_method_name": "setup_mudata" if is_mudata else "setup_anndata",
        "setup_args": mudata_arguments(setup) if is_mudata else _setup_args(setup, model_name),
        "field_registries": (with_modalities(fields, setup, schema.n_obs) if is_mudata else fields),
    }


def _setup_args(setup: SetupArgs, model_name: str) -> dict[str, Any]:
    """The arguments of ``setup_anndata`` as a user of scvi-tools would have given them."""
    arguments = {name: getattr(setup, name) for name in _SETUP_KEYS}
    if setup.protein_key is not None:
        # Such a model has no labels.
        del arguments["labels_key"]
        arguments |= {name: getattr(setup, own) for name, own in _PROTEIN_KEYS.items()}
    if REGISTRY_KEYS.LABELS_KEY not in _FIELDS.get(model_name, (REGISTRY_KEYS.LABELS_KEY,)):
        arguments.pop("labels_key", None)
    if setup.unlabeled_category is not None:
        arguments["unlabeled_category"] = setup.unlabeled_category
    return {name: list(v) if isinstance(v, tuple) else v for name, v in arguments.items()}


def schema_from_registry(
    registry: Mapping[str, Any],
    var_names: Sequence[str] | np.ndarray | Mapping[str, Any] | None = None,
) -> Schema:
    """The schema in a registry that scvi-tools wrote; fields it has no use for are passed over.

    ``var_names`` of a MuData may be those of each modality.

    Raises
    ------
    SchemaMismatch
        A part is missing; names it.
    """
    where = f"the registry of a {registry.get('model_name') or 'model'} saved by scvi-tools"
    where += f" {registry.get('scvi_version', '(unknown release)')}"
    fields = _part(registry, "field_registries", where)
    states = {key: _part(fields[key], "state_registry", where) for key in fields}
    proteins = states.get(REGISTRY_KEYS.PROTEIN_EXP_KEY, {})
    setup = _setup_from(registry, proteins, where)
    counts = _part(states, REGISTRY_KEYS.X_KEY, where)
    if isinstance(var_names, Mapping):
        var_names = _part(var_names, setup.rna_modality or "", where)
    elif setup.modalities is not None:
        # Older releases join the names of all modalities.
        var_names = None
    names = counts.get("column_names") if var_names is None else var_names
    if names is None:
        raise SchemaMismatch(f"{where} holds no gene names; give them as var_names.")
    categories, joint = {}, {}
    for field in setup.obs_fields:
        if not field.is_categorical or field.is_empty:
            continue
        if field.registry_key not in states and not field.columns:
            # A model without such a field: all its cells are of one category.
            categories[field.registry_key] = field.fit(())[0]
            continue
        state = _part(states, field.registry_key, where)
        found = _categories_in(state, state.get("field_keys", field.columns), where)
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
        protein_names=tuple(str(name) for name in proteins.get("column_names", ())),
        protein_batch_mask=_mask_in(proteins),
    )


def _part(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise SchemaMismatch(f"{where} has no {key!r}; it has {', '.join(map(str, mapping))}.")
    return mapping[key]


def _setup_from(registry: Mapping[str, Any], proteins: Mapping[str, Any], where: str) -> SetupArgs:
    arguments = _part(registry, "setup_args", where)
    if registry.get("setup_method_name") == "setup_mudata":
        return mudata_setup(arguments, arguments.get("modalities"))
    known = {name: arguments.get(name) for name in _SETUP_KEYS}
    known |= {own: arguments.get(name) for name, own in _PROTEIN_KEYS.items()}
    if known["protein_names_uns_key"] is not None:
        known["protein_names"] = tuple(map(str, proteins.get("column_names", ())))
    return SetupArgs(**known, unlabeled_category=arguments.get("unlabeled_category"))


def _mask_in(proteins: Mapping[str, Any]) -> ProteinMask | None:
    mask = proteins.get("protein_batch_mask")
    if mask is None:
        return None
    return {str(code): tuple(map(bool, seen)) for code, seen in mask.items()}


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
