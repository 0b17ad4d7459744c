"""Models whose latent space tells which samples have cells where."""

from typing import Any

import pandas as pd

from scvi_dist.analysis.abundance import (
    LOC,
    LOG_PROBS,
    SCALE,
    AbundancePass,
    Mixtures,
    PosteriorPass,
    Samples,
    write_abundance,
)
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.passes.engines import Executor, resolve_executor
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.data.open import is_anndata, is_mudata
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import Source
from scvi_dist.model.latent_model import LatentModel

ABUNDANCE = "da_log_probs"
"""Key of obsm under which an AnnData gets the result; scvi-tools'."""


class AbundanceModel(LatentModel):
    """A model that compares the abundance of cells between samples."""

    def differential_abundance(
        self,
        adata: Source = None,
        sample_key: str | None = None,
        batch_size: int = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
        *,
        adata_sub: Source = None,
        out: Out = None,
        seed: int | None = None,
        dask: Any = None,
        executor: Executor | None = None,
    ) -> pd.DataFrame | str:
        """Log-density of each cell's place in the latent space, under each sample.

        A sample is the mixture, in equal parts, of its cells' posteriors, whose scales are standard
        deviations; the place of a cell is the mean of its posterior. Differences between samples
        are log ratios of abundance there.

        Parameters
        ----------
        adata
            The cells that make the samples; the model's own where None.
        sample_key
            Column of obs with the sample of each cell. Cells without one are in no sample.
        batch_size
            Cells of a forward pass; no result depends on it.
        num_cells_posterior
            Most cells of a sample that its mixture is made of, drawn at random; all where None.
        dof
            Degrees of freedom of Student's t; normal components where None.
        adata_sub
            Other cells whose log-densities are wanted; those of ``adata`` where None. The work is
            cells times components: of millions give fewer of either.
        out
            Path or URL of a Zarr store that the result is written to, shard by shard; a call that
            was interrupted goes on. Its X are the log-densities, its "genes" the samples.
        seed
            Of the cells that are drawn; taken from torch's global generator where None.
        dask
            Where to compute: threads of this process where None, or what
            :func:`~scvi_dist.analysis.passes.engines.resolve_executor` takes.
        executor
            Runs the passes, instead of ``dask``.

        Returns
        -------
        float32 DataFrame ``[n, samples]``, samples in the order in which they first occur. An
        AnnData (or MuData) in memory also gets it as ``obsm["da_log_probs"]``. With ``out`` the
        store's URL.

        Memory is 8 bytes for each cell and latent dimension, besides the result.

        Source
        ------
        Boyeau et al. 2022, "Deep generative modeling of sample-level heterogeneity in single-cell
        genomics": the aggregated posterior.
        """
        if sample_key is None:
            raise ConfigError("sample_key is needed: the column of obs with each cell's sample.")
        self._check_if_trained()
        cells = self._stored(adata, batch_size, seed)
        labels = cells.source.store.read_obs([sample_key])[sample_key]
        samples = Samples.of(labels.to_numpy(dtype=object))
        samples = samples.limited(num_cells_posterior, cells.config.seed)
        scored = cells if adata_sub is None else self._stored(adata_sub, batch_size, seed)
        with resolve_executor(executor or dask) as run:
            # The places of the samples' own cells are there already.
            whole = adata_sub is None and out is None
            parts = cells.selection.subset(samples.components)
            those = cells if whole else StoreCells(cells.source, parts, cells.config)
            posteriors = run(PosteriorPass(), self.module, those)
            chosen = samples.components if whole else slice(None)
            mixtures = Mixtures(
                posteriors[LOC][chosen], posteriors[SCALE][chosen], samples.bounds, dof
            )
            if out is not None:
                return write_abundance(self.module, scored, mixtures, samples, out)
            points_nk = posteriors[LOC] if whole else run(PosteriorPass(), self.module, scored)[LOC]
            result = run(AbundancePass(mixtures, points_nk), None, scored)[LOG_PROBS]
        table = pd.DataFrame(result, index=scored.obs_names(), columns=list(samples.names))
        self._keep(table, adata if adata_sub is None else adata_sub)
        return table

    def _stored(self, adata: Source, batch_size: int, seed: int | None) -> StoreCells:
        cells = self._cells_of(adata, None, batch_size, None, seed)
        assert isinstance(cells, StoreCells), "no dataloader was given"
        return cells

    def _keep(self, table: pd.DataFrame, source: Source) -> None:
        """Write the result into the AnnData that the cells are of, if they are of one."""
        given: Any = self.adata if source is None else source
        if (is_anndata(given) or is_mudata(given)) and given.n_obs == len(table):
            given.obsm[ABUNDANCE] = table
