"""Opens the store of a run and finds what is not in it, before anything starts."""

from scvi_dist.config.sections import RunConfig
from scvi_dist.data import Store, open_store
from scvi_dist.data.setup import check_setup
from scvi_dist.errors import FieldNotFound, did_you_mean


def open_run_store(config: RunConfig) -> Store:
    """The store with the run's layer, cells and genes.

    Raises
    ------
    FieldNotFound, SchemaMismatch, StoreError, ConfigError
        A column, layer or gene is not there or of the wrong kind; the store cannot be read.
    """
    data = config.data
    store = open_store(
        data.store if isinstance(data.store, str) else list(data.store),
        layer=data.setup.layer,
        kind=data.kind,
        storage_options={**data.storage_options, **data.remote.as_options()} or None,
        obs_filter=data.obs_filter,
        genes=data.gene_list(),
        soma=data.soma,
        join=data.join,
        modality=data.modality or data.setup.rna_modality,
        unpaired=data.unpaired,
    )
    check_setup(store, data.setup)
    for column in config.output.colour_by or ():
        if column not in store.obs_columns:
            raise FieldNotFound(
                f"output.colour_by names {column!r}, which is not in obs of "
                f"{store.locator.redacted_url}; {did_you_mean(column, store.obs_columns)}"
            )
    return store
