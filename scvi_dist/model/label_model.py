"""Models that predict the labels of cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.attribution import (
    AttributionOptions,
    gene_attributions,
    ranked_features,
)
from scvi_dist.analysis.classification import label_probabilities
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import Source
from scvi_dist.model.count_model import CountModel
from scvi_dist.model.latent_model import Indices, Loader
from scvi_dist.module.scanvae import SCANVAE


class LabelModel(CountModel):
    """A model of counts whose module also classifies cells.

    See :class:`~scvi_dist.model.latent_model.LatentModel` for the arguments that all methods
    share.
    """

    module: SCANVAE
    n_labels: int
    """Classes."""

    @property
    def unlabeled_category_(self) -> Any:
        """The label of cells without one."""
        return self.schema.setup.unlabeled_category

    @property
    def original_label_key(self) -> str | None:
        """Column of obs that holds the labels."""
        return self.schema.setup.labels_key

    @property
    def labels_(self) -> np.ndarray:
        """Label of each of the model's cells, object ``[n]``; read when asked for."""
        store = self._binding.manager_for().store
        obs = store.read_obs([str(self.original_label_key)], 0, store.n_obs)
        return obs[self.original_label_key].to_numpy(dtype=object)

    @property
    def class_names(self) -> np.ndarray:
        """Label of each class, object ``[c]``."""
        labels = self.schema.categories[REGISTRY_KEYS.LABELS_KEY]
        return np.array(labels[: self.n_labels], dtype=object)

    def predict(
        self,
        adata: Source = None,
        indices: Indices = None,
        soft: bool = False,
        batch_size: int | None = None,
        use_posterior_mean: bool = True,
        ig_interpretability: bool = False,
        ig_args: Mapping[str, Any] | None = None,
        dataloader: Loader = None,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> np.ndarray | pd.DataFrame | str | tuple[np.ndarray | pd.DataFrame, pd.DataFrame]:
        """Label of each cell.

        Parameters
        ----------
        soft
            Probabilities instead.
        use_posterior_mean
            Classify the mean of the latent posterior; otherwise a draw from it.
        ig_interpretability
            Also rank the genes by what they add to the predicted class, by integrated gradients.
        ig_args
            Of these: ``n_steps``, points of the integral (50).
        out
            Write the probabilities to a store instead, as ``obsm["X_label_probabilities"]`` with
            the labels in ``uns["X_label_probabilities_columns"]``, and the most probable label as
            ``obs["prediction"]``.

        Returns
        -------
        Labels ``[n]``, or a DataFrame of probabilities, with a column for each label and the
        names of the cells; with ``out`` the store's URL. With ``ig_interpretability`` a pair of
        that and a DataFrame of the genes.
        """
        self._check_if_trained()
        if indices is not None and not len(indices) and not ig_interpretability:
            none = np.empty((0, self.n_labels), dtype=np.float32)
            return pd.DataFrame(none, columns=self.class_names) if soft else np.array([], str)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        found = label_probabilities(
            self.module,
            cells,
            [str(name) for name in self.class_names],
            use_posterior_mean=use_posterior_mean,
            out=out,
        )
        if isinstance(found, str):
            return found
        answer: np.ndarray | pd.DataFrame
        if soft:
            names = cells.obs_names() if isinstance(cells, StoreCells) else None
            answer = pd.DataFrame(found, columns=self.class_names, index=names)
        else:
            answer = np.array(self.class_names[found.argmax(axis=1)].tolist())
        if not ig_interpretability:
            return answer
        options = AttributionOptions.of(ig_args)
        return answer, gene_attributions(self.module, cells, self._genes, options)

    @property
    def _genes(self) -> np.ndarray:
        return np.array(self.schema.var_names, dtype=object)

    def get_ranked_features(
        self, adata: Source = None, attrs: np.ndarray | None = None
    ) -> pd.DataFrame:
        """Genes by their mean attribution, the largest first.

        Parameters
        ----------
        adata
            Not used: the genes are the model's.
        attrs
            What each gene added to the prediction of each cell, ``[n, g]``; see :meth:`predict`
            for the same without these.
        """
        if attrs is None:
            raise ConfigError(
                "get_ranked_features needs attrs, attributions [cells, genes]; "
                "predict(ig_interpretability=True) ranks the genes without keeping them."
            )
        mean_g, std_g = attrs.mean(axis=0), attrs.std(axis=0)
        return ranked_features(self._genes, mean_g, std_g, len(attrs))
