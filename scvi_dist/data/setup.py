"""Which counts and which columns of obs a model uses, and whether a store has them."""

from contextlib import suppress
from dataclasses import dataclass

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.categories import Category
from scvi_dist.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LabelsWithUnlabeledObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsField,
)
from scvi_dist.data.names import check_unique_genes
from scvi_dist.data.proteins import ProteinField, check_proteins
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, did_you_mean

PANEL_KEY = "panel"
"""Registry key of the panels of proteins, where they are not the batches."""

_COVARIATES = ("categorical_covariate_keys", "continuous_covariate_keys")


@dataclass(frozen=True, slots=True)
class SetupArgs:
    """Which counts and which columns of obs a model uses; scvi-tools' names."""

    layer: str | None = None
    """``None`` is X, ``"raw"`` is raw.X, anything else is the layer of that name."""
    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] | None = None
    continuous_covariate_keys: tuple[str, ...] | None = None
    unlabeled_category: Category | None = None
    """The label that means "not labelled" (semi-supervised models only)."""
    protein_key: str | None = None
    """Key of obsm that holds the counts of proteins; a modality of a MuData is one."""
    protein_names: tuple[str, ...] | None = None
    """Names of the proteins where they are not those of the table."""
    protein_names_uns_key: str | None = None
    """Key of uns that these names came from."""
    panel_key: str | None = None
    """Column of the panels of proteins; the batches are panels where None."""
    modalities: tuple[tuple[str, str], ...] | None = None
    """Argument of ``setup_mudata`` and the modality that it looks into, in order of arguments;
    None for what is not a MuData."""

    def __post_init__(self) -> None:
        for name in _COVARIATES:
            keys = getattr(self, name)
            if isinstance(keys, str):
                raise ConfigError(f"{name} takes a list of columns; seen {keys!r}.")
            if keys is not None:
                object.__setattr__(self, name, tuple(keys))
                if len(set(keys)) < len(keys):
                    raise ConfigError(f"{name} names a column twice: {list(keys)}.")
        if self.unlabeled_category is not None and self.labels_key is None:
            raise ConfigError(
                f"unlabeled_category={self.unlabeled_category!r} needs labels_key: "
                "the column of obs that holds it."
            )
        self._check_proteins()

    def _check_proteins(self) -> None:
        if self.modalities is not None:
            pairs = sorted((str(name), str(modality)) for name, modality in self.modalities)
            object.__setattr__(self, "modalities", tuple(pairs))
        if isinstance(self.protein_names, str):
            raise ConfigError(f"protein_names takes a list of names; seen {self.protein_names!r}.")
        if self.protein_names is not None:
            object.__setattr__(self, "protein_names", tuple(map(str, self.protein_names)))
        if self.protein_key is None and (self.panel_key or self.protein_names):
            raise ConfigError(
                "panels and names of proteins need protein_key: the key of obsm that holds the "
                "counts of proteins."
            )

    @property
    def rna_modality(self) -> str | None:
        """The modality of a MuData whose counts are X; None for what is not a MuData."""
        return dict(self.modalities or ()).get("rna_layer")

    @property
    def protein_field(self) -> ProteinField | None:
        """The field of the counts of proteins; None for a model of genes alone."""
        if self.protein_key is None:
            return None
        return ProteinField(
            REGISTRY_KEYS.PROTEIN_EXP_KEY, self.protein_key, self.protein_names is not None
        )

    @property
    def panel_column(self) -> str | None:
        """Column of obs that says how a cell's proteins were measured; None: all alike."""
        return self.panel_key or self.batch_key

    @property
    def layer_field(self) -> LayerField:
        """The field of the counts."""
        return LayerField(REGISTRY_KEYS.X_KEY, self.layer)

    @property
    def obs_fields(self) -> tuple[ObsField, ...]:
        """The fields of obs, in scvi-tools' order; empty ones included."""
        labels: ObsField
        if self.unlabeled_category is None:
            labels = CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, self.labels_key)
        else:
            labels = LabelsWithUnlabeledObsField(
                REGISTRY_KEYS.LABELS_KEY, self.labels_key, self.unlabeled_category
            )
        panel = CategoricalObsField(PANEL_KEY, self.panel_key)
        return (
            *((panel,) if self.panel_key else ()),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, self.batch_key),
            labels,
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, self.size_factor_key),
            CategoricalJointObsField(
                REGISTRY_KEYS.CAT_COVS_KEY, self.categorical_covariate_keys or ()
            ),
            NumericalJointObsField(
                REGISTRY_KEYS.CONT_COVS_KEY, self.continuous_covariate_keys or ()
            ),
        )

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns of obs that are read, each once."""
        return tuple(dict.fromkeys(c for field in self.obs_fields for c in field.columns))


def check_setup(store: Store, setup: SetupArgs) -> None:
    """Raise unless the store can be set up like this. Reads no data.

    Raises
    ------
    FieldNotFound
        A column is not in obs; names the nearest one.
    SchemaMismatch
        A column that should hold numbers does not.
    ConfigError
        The store was opened with another layer.
    """
    where = store.locator.redacted_url
    if 0 in store.shape:
        raise SchemaMismatch(
            f"{where} has {store.n_obs} cells and {store.n_vars} genes; a model needs some of both."
        )
    check_unique_genes(store.var_names, where)
    kinds = store.obs_columns
    for field in setup.obs_fields:
        for column in field.columns:
            if column not in kinds:
                _explain_column(store, column)
                raise FieldNotFound(
                    f"{field.registry_key} needs column {column!r}, which is not in obs of "
                    f"{where}; {did_you_mean(column, kinds)}"
                )
            if not field.is_categorical and kinds[column] not in ("number", "bool"):
                raise SchemaMismatch(
                    f"{field.registry_key} needs a column of numbers; obs[{column!r}] of {where} "
                    f"holds values of kind {kinds[column]!r}."
                )
    if setup.protein_key is not None:
        check_proteins(store, setup.protein_key, setup.protein_names)
    layer = _layer_of(store.locator)
    if layer != setup.layer:
        raise ConfigError(
            f"the setup asks for layer {setup.layer!r}, but {where} was opened with layer "
            f"{layer!r}. Open it with layer={setup.layer!r}."
        )


def _explain_column(store: Store, column: str) -> None:
    """Raise what the store itself says, where that is more than that there is no such column."""
    with suppress(FieldNotFound):
        store.read_obs([column], 0, 0)


def _layer_of(locator: StoreLocator) -> str | None:
    if locator.layer is None and locator.parts:
        return _layer_of(locator.parts[0])
    return locator.layer
