"""What a run file may say of each class of model."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

from scvi_dist.config.build import is_code
from scvi_dist.train.configs import TrainingPlanConfig

_SETUP = (
    "layer",
    "batch_key",
    "labels_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
_WITHOUT_LABELS = tuple(key for key in _SETUP if key != "labels_key")

_FROM_DATA = (
    "n_input",
    "n_input_genes",
    "n_input_proteins",
    "n_genes",
    "n_batch",
    "n_labels",
    "n_panel",
    "panel_key",
    "n_continuous_cov",
    "n_cats_per_cov",
    "use_size_factor_key",
    "library_log_means",
    "library_log_vars",
    "protein_batch_mask",
    "protein_background_prior_mean",
    "protein_background_prior_scale",
    "y_prior",
    "labels_groups",
    "rho",
    "basis_means",
    "b_g_0",
)
"""Arguments of modules that follow from the data, or are arrays."""

_BASE_PLAN = "scvi_dist.train.configs:TrainingPlanConfig"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelKind:
    """A class of model, and what its section and those about data and training may hold."""

    model: str
    """``module:class`` that a user holds."""
    module: str
    """``module:class`` whose arguments it takes."""
    choices: str | None = None
    """``module:name`` of the values that some arguments may have."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Arguments besides those of the module, and their types."""
    setup: tuple[str, ...] = _SETUP
    """Keys of ``data`` that it uses, of those about columns."""
    required: tuple[str, ...] = ()
    """Keys of ``data`` that it cannot do without."""
    plans: tuple[str, ...] = (_BASE_PLAN,)
    """``module:class`` of its training plans' arguments; the first that has the keys given."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of ``train`` that are not those of all models."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """The same of ``train.plan``."""
    has_latent: bool = True
    """Whether cells lie in a latent space."""
    predicts: bool = False
    """Whether it gives each cell probabilities of labels or types."""
    learns_labels: bool = False
    """Whether it draws minibatches of labelled cells."""

    @property
    def model_class(self) -> Any:
        """The class that a user holds."""
        return load(self.model)

    @property
    def valid_values(self) -> Mapping[str, tuple[str, ...]]:
        """Argument -> values that it may have."""
        return {} if self.choices is None else load(self.choices)

    def arguments(self) -> dict[str, Any]:
        """Argument -> type, of those that a run file may give."""
        return {**_arguments_of(self.module), **self.further}

    @property
    def plan_classes(self) -> list[type[TrainingPlanConfig]]:
        """Configs of its training plans."""
        return [load(plan) for plan in self.plans]

    def plan_class(self, keys: Mapping[str, Any]) -> type[TrainingPlanConfig]:
        """The plan's config: the first that has all keys, else the last, which has the most."""
        plans = self.plan_classes
        fitting = [plan for plan in plans if set(keys) <= {f.name for f in fields(plan)}]
        return (fitting or plans[-1:])[0]


MODELS: dict[str, ModelKind] = {
    "SCVI": ModelKind(
        model="scvi_dist.model.scvi:SCVI",
        module="scvi_dist.module.vae:VAE",
        choices="scvi_dist.module.vae_args:CHOICES",
    ),
    "SCANVI": ModelKind(
        model="scvi_dist.model.scanvi:SCANVI",
        module="scvi_dist.module.scanvae:SCANVAE",
        choices="scvi_dist.module.vae_args:CHOICES",
        setup=(*_SETUP, "unlabeled_category"),
        required=("labels_key", "unlabeled_category"),
        plans=(
            "scvi_dist.train.semi_supervised_config:SemiSupervisedPlanConfig",
            "scvi_dist.train.semi_supervised_config:SemiSupervisedAdversarialPlanConfig",
        ),
        predicts=True,
        learns_labels=True,
    ),
    "TOTALVI": ModelKind(
        model="scvi_dist.model.totalvi:TOTALVI",
        module="scvi_dist.module.totalvae:TOTALVAE",
        choices="scvi_dist.module.totalvae_args:CHOICES",
        further={
            "empirical_protein_background_prior": bool | None,
            "override_missing_proteins": bool,
        },
        setup=(*_WITHOUT_LABELS, "protein_key", "protein_names", "panel_key"),
        required=("protein_key",),
        plans=("scvi_dist.train.adversarial_config:AdversarialPlanConfig",),
        train={
            "batch_size": 256,
            "early_stopping": True,
            "check_val_every_n_epoch": 1,
            "adversary_where_proteins_lack": True,
        },
        plan={"lr": 4e-3, "reduce_lr_on_plateau": True},
    ),
    "CellAssign": ModelKind(
        model="scvi_dist.model.cellassign:CellAssign",
        module="scvi_dist.module.cellassign:CellAssignModule",
        setup=_WITHOUT_LABELS,
        required=("markers",),
        train={
            "batch_size": 1024,
            "max_epochs": 400,
            "check_val_every_n_epoch": 1,
            "early_stopping": {"patience": 15},
            "kl_warmup_fraction": None,
        },
        plan={"lr": 3e-3, "weight_decay": 1e-10},
        has_latent=False,
        predicts=True,
    ),
}
"""Name -> what a run file may say of it. The defaults are those of the model's ``train()``."""

DEFAULT_MODEL = "SCVI"


@cache
def _arguments_of(place: str) -> dict[str, Any]:
    module = load(place)
    hints = get_type_hints(module.__init__)
    return {
        argument: hints[argument]
        for argument in inspect.signature(module.__init__).parameters
        if argument in hints and argument not in _FROM_DATA and not is_code(hints[argument])
    }


def load(place: str) -> Any:
    """What stands at ``module:name``."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def kind_in(tree: Mapping[str, Any]) -> ModelKind:
    """The kind that a run file's tree names; the default where it names none that there is."""
    section = tree.get("model")
    name = section.get("name", DEFAULT_MODEL) if isinstance(section, Mapping) else DEFAULT_MODEL
    return MODELS.get(name if isinstance(name, str) else DEFAULT_MODEL, MODELS[DEFAULT_MODEL])


def with_defaults(tree: Mapping[str, Any], kind: ModelKind) -> dict[str, Any]:
    """The tree with the model's own defaults of training where it says nothing."""
    given = tree.get("train")
    if given is not None and not isinstance(given, Mapping):
        return dict(tree)
    given = dict(given or {})
    train = {**kind.train, **given}
    if "max_steps" in given and "max_epochs" not in given:
        train.pop("max_epochs", None)
    plan = given.get("plan")
    if plan is None or isinstance(plan, Mapping):
        plan = dict(plan or {})
        train["plan"] = {**kind.plan, **plan}
        if {"n_epochs_kl_warmup", "n_steps_kl_warmup"} & set(plan):
            train.setdefault("kl_warmup_fraction", None)
        if "adversarial_classifier" in plan and "adversary_where_proteins_lack" not in given:
            train.pop("adversary_where_proteins_lack", None)
    return {**tree, "train": train}
