"""Every public method and argument of scvi-tools' models is here, or here is why it is not.

The table below is the one list of what scvi-tools 1.4.2 has and these models have not.
"""

import importlib
import inspect
from typing import Any

import pytest
from scvi_pairs import quiet

import scvi_dist

pytestmark = pytest.mark.parity

MODELS = ("SCVI", "SCANVI", "TOTALVI", "CellAssign")

_LEGACY = "reads bare pickles, which run whatever they contain; scvi-tools converts them"
_STEP = "a step of get_normalized_expression(weights='importance'), which takes its arguments"
_SHAP = "needs the package shap and a dense background matrix; predict(ig_interpretability=True)"
_NO_LATENT = "CellAssign has no latent space: scvi-tools inherits the method, and it fails"

EXCEPTIONS: dict[str, str] = {
    "*.convert_legacy_save": _LEGACY,
    "*.get_importance_weights": _STEP,
    "SCANVI.shap_predict": _SHAP,
    "SCANVI.shap_adata_predict": _SHAP,
    "TOTALVI.minify_mudata": "posteriors of proteins' backgrounds are not kept; not written yet",
    "CellAssign.differential_abundance": _NO_LATENT,
    "CellAssign.differential_expression": _NO_LATENT,
    "CellAssign.get_feature_correlation_matrix": _NO_LATENT,
    "CellAssign.get_latent_library_size": _NO_LATENT,
    "CellAssign.get_likelihood_parameters": _NO_LATENT,
    "CellAssign.get_normalized_expression": _NO_LATENT,
    "CellAssign.posterior_predictive_sample": _NO_LATENT,
}
"""``Model.method`` or ``Model.method(argument)``, ``*`` for every model -> reason."""

DEFAULTS: dict[str, str] = {
    "CellAssign.setup_anndata(size_factor_key)": "computed by one pass over the cells where None",
    "CellAssign.__init__(adata)": "None, for a model without data (registry=…)",
    "CellAssign.__init__(cell_type_markers)": "named after the data, which may be None",
    "TOTALVI.__init__(adata)": "None, for a model without data (registry=…)",
    "TOTALVI.get_protein_background_mean(adata)": "None, for the model's own cells",
    "TOTALVI.get_protein_background_mean(indices)": "None, for all cells",
    "TOTALVI.get_protein_background_mean(batch_size)": "None, for the usual one",
}
"""Arguments with a default that is not scvi-tools' -> reason."""


def _excused(table: dict[str, str], model: str, what: str) -> bool:
    return f"{model}.{what}" in table or f"*.{what}" in table


def _classes(scvi: Any, name: str) -> tuple[Any, Any]:
    """The class there and the class here."""
    with quiet():
        external = importlib.import_module("scvi.external")
    theirs = getattr(external if name == "CellAssign" else scvi.model, name)
    return theirs, getattr(scvi_dist.model, name)


def _public(cls: Any) -> list[str]:
    return ["__init__", *(name for name in dir(cls) if not name.startswith("_"))]


@pytest.mark.parametrize("model", MODELS)
def test_every_public_name_of_a_model_is_here(scvi: Any, model: str) -> None:
    theirs, ours = _classes(scvi, model)
    missing = [
        name
        for name in _public(theirs)
        if not hasattr(ours, name) and not _excused(EXCEPTIONS, model, name)
    ]
    assert not missing
    for name in _public(theirs):
        there = inspect.getattr_static(theirs, name)
        if hasattr(ours, name) and isinstance(there, property):
            here = inspect.getattr_static(ours, name)
            assert isinstance(here, property), name
            assert (here.fset is not None) >= (there.fset is not None), name


@pytest.mark.parametrize("model", MODELS)
def test_every_argument_is_taken_with_its_default(scvi: Any, model: str) -> None:
    theirs, ours = _classes(scvi, model)
    wrong = []
    for name in _public(theirs):
        there = getattr(theirs, name)
        if not callable(there) or not hasattr(ours, name):
            continue
        expected = inspect.signature(there).parameters
        got = inspect.signature(getattr(ours, name)).parameters
        for argument, parameter in expected.items():
            what = f"{name}({argument})"
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if _excused(EXCEPTIONS, model, what):
                continue
            if argument not in got:
                takes_any = any(p.kind is p.VAR_KEYWORD for p in got.values())
                wrong.append(f"{what} is missing{' but for **' if takes_any else ''}")
            elif got[argument].default != parameter.default and not _excused(DEFAULTS, model, what):
                wrong.append(f"{what}={got[argument].default!r}, there {parameter.default!r}")
    assert not wrong


@pytest.mark.parametrize("model", MODELS)
def test_positional_arguments_are_in_the_same_places(scvi: Any, model: str) -> None:
    theirs, ours = _classes(scvi, model)
    for name in _public(theirs):
        there = getattr(theirs, name)
        if not callable(there) or not hasattr(ours, name):
            continue
        positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        known = [
            argument
            for argument, p in inspect.signature(there).parameters.items()
            if p.kind in positional and not _excused(EXCEPTIONS, model, f"{name}({argument})")
        ]
        own = [
            argument
            for argument, p in inspect.signature(getattr(ours, name)).parameters.items()
            if p.kind in positional
        ]
        assert own[: len(known)] == known, f"{model}.{name}"


def test_no_exception_is_out_of_date(scvi: Any) -> None:
    for table in (EXCEPTIONS, DEFAULTS):
        for entry in table:
            model, _, what = entry.partition(".")
            name, _, argument = what.rstrip(")").partition("(")
            for one in MODELS if model == "*" else (model,):
                theirs, ours = _classes(scvi, one)
                if model != "*":
                    assert hasattr(theirs, name), entry
                if argument:
                    assert argument in inspect.signature(getattr(theirs, name)).parameters, entry
                elif table is EXCEPTIONS:
                    assert not hasattr(ours, name), f"{entry} is there now"
        assert all(reason.strip() for reason in table.values())


def _callables() -> list[tuple[str, str]]:
    check = "PosteriorPredictiveCheck"
    methods = ("coefficient_of_variation", "zero_fraction", "calibration_error")
    names = (check, *(f"{check}.{name}" for name in (*methods, "differential_expression")))
    return [("criticism", name) for name in (*names, "create_criticism_report")]


@pytest.mark.parametrize(("package", "name"), _callables())
def test_functions_take_the_same_arguments(scvi: Any, package: str, name: str) -> None:
    there: Any = importlib.import_module(f"scvi.{package}")
    here: Any = importlib.import_module(f"scvi_dist.{package}")
    for part in name.split("."):
        there, here = getattr(there, part), getattr(here, part)
    expected, got = inspect.signature(there).parameters, inspect.signature(here).parameters
    assert list(got)[: len(expected)] == list(expected)
    for argument, parameter in expected.items():
        assert got[argument].default == parameter.default, argument


# Packages

NAMES: dict[str, tuple[str, ...]] = {
    "scvi": ("REGISTRY_KEYS", "settings", "criticism", "data", "external", "model"),
    "scvi.criticism": ("PosteriorPredictiveCheck", "create_criticism_report"),
    "scvi.model": MODELS[:3],
    "scvi.external": ("CellAssign",),
    "scvi.module": ("VAE", "SCANVAE", "TOTALVAE", "Classifier"),
    "scvi.nn": (
        "Decoder",
        "DecoderSCVI",
        "DecoderTOTALVI",
        "Embedding",
        "Encoder",
        "EncoderTOTALVI",
        "FCLayers",
    ),
    "scvi.distributions": (
        "NegativeBinomial",
        "NegativeBinomialMixture",
        "Normal",
        "Poisson",
        "ZeroInflatedNegativeBinomial",
    ),
    "scvi.train": (
        "AdversarialTrainingPlan",
        "AdversarialTrainingPlanConfig",
        "SaveCheckpoint",
        "SemiSupervisedAdversarialTrainingPlan",
        "SemiSupervisedAdversarialTrainingPlanConfig",
        "SemiSupervisedTrainingPlan",
        "SemiSupervisedTrainingPlanConfig",
        "TrainingPlan",
        "TrainingPlanConfig",
    ),
    "scvi.data": (
        "AnnDataManager",
        "read_csv",
        "read_h5ad",
        "read_loom",
        "read_text",
        "synthetic_iid",
    ),
    "scvi.data.fields": (
        "CategoricalJointObsField",
        "CategoricalObsField",
        "LabelsWithUnlabeledObsField",
        "LayerField",
        "NumericalJointObsField",
        "NumericalObsField",
    ),
    "scvi.dataloaders": ("AnnDataLoader",),
}
"""Package -> the names in it that belong to these models."""


@pytest.mark.parametrize("package", NAMES)
def test_names_are_where_users_look(scvi: Any, package: str) -> None:
    with quiet():
        theirs = importlib.import_module(package)
    ours = importlib.import_module(package.replace("scvi", "scvi_dist", 1))
    for name in NAMES[package]:
        assert hasattr(theirs, name), name
        assert hasattr(ours, name), name
    assert scvi_dist.REGISTRY_KEYS.X_KEY == scvi.REGISTRY_KEYS.X_KEY


def test_settings_have_the_same_names(scvi: Any) -> None:
    gone = {"jax_preallocate_gpu_memory"}
    names = {name for name in dir(scvi.settings) if not name.startswith("_")} - gone
    for name in sorted(names):
        assert hasattr(scvi_dist.settings, name), name
