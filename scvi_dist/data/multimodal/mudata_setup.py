"""``setup_mudata``: which modality each part of a setup is in, and how scvi-tools tells of it.

A store shows a MuData as one table of cells: its counts are those of one modality; the columns of
a modality's obs are ``modality:column``; the counts of another modality are a table of obsm,
``modality`` or ``modality:layer``. A setup holds these names, so that nothing else knows of
modalities; scvi-tools' registry keeps name and modality apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.setup import PANEL_KEY, SetupArgs
from scvi_dist.errors import ConfigError, did_you_mean

_OBS_KEYS = ("batch_key", "panel_key", "size_factor_key")
_JOINT_KEYS = ("categorical_covariate_keys", "continuous_covariate_keys")
_LAYERS = ("rna_layer", "protein_layer")
ARGUMENTS = (*_LAYERS, *_OBS_KEYS, *_JOINT_KEYS)
"""Arguments of ``setup_mudata`` that a modality can be named for."""

_ARGUMENT_OF_FIELD = {
    REGISTRY_KEYS.X_KEY: "rna_layer",
    REGISTRY_KEYS.BATCH_KEY: "batch_key",
    # A panel is looked for where the batch is, as in scvi-tools.
    PANEL_KEY: "batch_key",
    REGISTRY_KEYS.SIZE_FACTOR_KEY: "size_factor_key",
    REGISTRY_KEYS.CAT_COVS_KEY: "categorical_covariate_keys",
    REGISTRY_KEYS.CONT_COVS_KEY: "continuous_covariate_keys",
    REGISTRY_KEYS.PROTEIN_EXP_KEY: "protein_layer",
}
"""Registry key -> the argument whose modality it is in."""


def mudata_setup(
    arguments: Mapping[str, Any], modalities: Mapping[str, str | None] | None
) -> SetupArgs:
    """The setup that the arguments of ``setup_mudata`` describe.

    Parameters
    ----------
    arguments
        ``rna_layer``, ``protein_layer`` and names of columns of obs.
    modalities
        Argument -> modality that it looks into; the whole MuData's obs where there is none.

    Raises
    ------
    ConfigError
        ``rna_layer`` or ``protein_layer`` has no modality, or an argument is not known.
    """
    within = _checked(modalities)
    columns: dict[str, Any] = {}
    for name in _OBS_KEYS:
        modality = within.get("batch_key" if name == "panel_key" else name)
        columns[name] = _in(modality, arguments.get(name))
    for name in _JOINT_KEYS:
        keys = arguments.get(name)
        columns[name] = None if keys is None else tuple(_in(within.get(name), k) for k in keys)
    protein_layer = arguments.get("protein_layer")
    proteins = within["protein_layer"]
    return SetupArgs(
        layer=arguments.get("rna_layer"),
        protein_key=proteins if protein_layer is None else f"{proteins}:{protein_layer}",
        modalities=tuple(within.items()),
        **columns,
    )


def _checked(modalities: Mapping[str, str | None] | None) -> dict[str, str]:
    if modalities is None:
        raise ConfigError(
            "Modalities cannot be None: say in which modality the counts are, such as "
            'modalities={"rna_layer": "rna", "protein_layer": "prot"}.'
        )
    for name in modalities:
        if name not in ARGUMENTS:
            raise ConfigError(f"modalities has no {name!r}; {did_you_mean(name, ARGUMENTS)}")
    named = {name: modality for name, modality in modalities.items() if modality is not None}
    for name in _LAYERS:
        if name not in named:
            raise ConfigError(f"modalities must say in which modality {name} is, e.g. 'rna'.")
    return named


def _in(modality: str | None, key: str | None) -> str | None:
    return key if modality is None or key is None else f"{modality}:{key}"


def mudata_arguments(setup: SetupArgs) -> dict[str, Any]:
    """The arguments of ``setup_mudata`` as a user of scvi-tools would have given them."""
    within = dict(setup.modalities or ())
    columns: dict[str, Any] = {}
    for name in (*_OBS_KEYS, *_JOINT_KEYS):
        modality = within.get("batch_key" if name == "panel_key" else name)
        value = getattr(setup, name)
        if isinstance(value, tuple):
            columns[name] = [_out_of(modality, key) for key in value]
        else:
            columns[name] = None if value is None else _out_of(modality, value)
    _, _, protein_layer = (setup.protein_key or "").partition(f"{within['protein_layer']}:")
    return {
        "rna_layer": setup.layer,
        "protein_layer": protein_layer or None,
        **columns,
        "modalities": within,
    }


def _out_of(modality: str | None, key: str) -> str:
    return key if modality is None else key.removeprefix(f"{modality}:")


def with_modalities(fields_of: Mapping[str, Any], setup: SetupArgs, n_obs: int) -> dict[str, Any]:
    """The fields of a registry as scvi-tools writes them for a MuData.

    Parameters
    ----------
    fields_of
        Registry key -> what an AnnData of the same setup would have.
    setup
        Its modalities.
    n_obs
        Cells.
    """
    within = dict(setup.modalities or ())
    told = {}
    for key, field in fields_of.items():
        modality = within.get(_ARGUMENT_OF_FIELD.get(key, ""))
        place, state = dict(field["data_registry"]), dict(field["state_registry"])
        if key == REGISTRY_KEYS.PROTEIN_EXP_KEY:
            layer = mudata_arguments(setup)["protein_layer"]
            place = {"attr_name": "X" if layer is None else "layers", "attr_key": layer}
            names = np.array(state.pop("column_names"), dtype=object)
            state = {"n_obs": n_obs, "n_vars": len(names), "column_names": names, **state}
        if modality is not None:
            place = _place_within(modality, place)
            state = _state_within(modality, state)
        told[key] = {**field, "data_registry": place, "state_registry": state}
    return told


def _place_within(modality: str, place: Mapping[str, Any]) -> dict[str, Any]:
    """Where a field is, told as seen from its modality; nowhere for an empty field."""
    if not place:
        return {}
    told = {**place, "mod_key": modality}
    if place["attr_name"] == "obs":
        told["attr_key"] = _out_of(modality, place["attr_key"])
    return told


def _state_within(modality: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A field's state with the names that its columns have in their modality."""
    told = dict(state)
    if "original_key" in state:
        told["original_key"] = _out_of(modality, state["original_key"])
    if "columns" in state:
        told["columns"] = np.array([_out_of(modality, c) for c in state["columns"]], dtype=object)
    if "field_keys" in state:
        told["field_keys"] = [_out_of(modality, column) for column in state["field_keys"]]
        told["mappings"] = dict(zip(told["field_keys"], state["mappings"].values(), strict=True))
    return told
