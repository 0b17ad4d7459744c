"""Models whose data can do without counts, once its cells' posteriors are kept."""

from scvi_dist.data.minified import ADATA_MINIFY_TYPE, Minified, minified_adata
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.base import BaseModel
from scvi_dist.model.train_call import TrainCall
from scvi_dist.model.training import FitSettings
from scvi_dist.train.configs import TrainingPlanConfig


class MinifiableModel(BaseModel):
    """A model that can be asked of posteriors in place of counts."""

    @property
    def minified_data_type(self) -> str | None:
        """How the model's own data was minified; None where it was not."""
        manager = self._binding.manager
        if manager is None or manager.schema.minified is None:
            return None
        return manager.schema.minified.kind

    def minify_adata(
        self,
        minified_data_type: str = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Give the model another AnnData, with posteriors that take the place of its counts.

        The AnnData that it had stays as it is. What cannot be answered without counts (bounds,
        likelihoods, training) is refused afterwards, unless the counts are kept.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``, or ``"latent_posterior_parameters_with_counts"`` to
            keep the counts too.
        use_latent_qzm_key, use_latent_qzv_key
            Keys of obsm that hold what ``get_latent_representation(return_dist=True)`` gives: the
            posteriors' means and variances.

        Raises
        ------
        ConfigError
            The cells are in a store, the library size is inferred, or there is no such kind.
        FieldNotFound
            The posteriors are not in obsm.
        """
        if minified_data_type not in ADATA_MINIFY_TYPE:
            raise ConfigError(
                f"Minification method {minified_data_type} is not supported; "
                f"{did_you_mean(str(minified_data_type), ADATA_MINIFY_TYPE)}"
            )
        if not getattr(self.module, "use_observed_lib_size", True):
            raise ConfigError(
                "Minification is not supported for models that do not use observed library size: "
                "the size that they infer for a cell follows from its counts."
            )
        manager, name = self._binding.manager_for(), type(self).__name__
        if manager.adata is None or manager.adata.isbacked:
            raise ConfigError(
                "minify_adata makes a smaller AnnData of one in memory, but these cells are in "
                f"{manager.store.locator.redacted_url} and take no memory. To keep their "
                "posteriors alone: get_latent_representation(return_dist=True, out=…)"
            )
        minified = Minified(minified_data_type, name.lower(), int(self.module.n_latent))
        keys = (use_latent_qzm_key, use_latent_qzv_key)
        self._binding.attach(minified_adata(manager.adata, manager.store, minified, *keys))

    def _settings_of(self, call: TrainCall, plan: TrainingPlanConfig) -> FitSettings:
        self._needs_counts("train", self._binding.manager_for().schema.minified)
        return super()._settings_of(call, plan)

    @staticmethod
    def _needs_counts(method: str, minified: Minified | None) -> None:
        """Raise where a method has nothing to look at.

        Raises
        ------
        ConfigError
            The cells have posteriors in place of counts.
        """
        if minified is not None and not minified.has_counts:
            raise ConfigError(
                f"The {method} function currently does not support minified data without counts "
                f"({minified.kind}): it looks at the counts themselves. Give the cells with their "
                "counts as adata=…"
            )
