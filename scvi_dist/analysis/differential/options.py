"""What a differential expression analysis is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from scvi_dist.analysis.importance import ImportanceOptions
from scvi_dist.errors import ConfigError

Mode = Literal["vanilla", "change"]
Estimator = Literal["sample", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferentialOptions:
    """How two populations are compared; scvi-tools' names and defaults."""

    mode: Mode = "vanilla"
    """``"vanilla"``: which population has more; ``"change"``: whether log fold changes (LFC) are
    beyond ``delta``."""
    estimator: Estimator = "sample"
    """``"sample"``: of cells that are drawn; ``"full"``: of every cell, through histograms."""
    delta: float | None = 0.25
    """Changes between ``-delta`` and ``delta`` are none; found from the data where None."""
    all_stats: bool = True
    """Add statistics of the counts."""
    batch_correction: bool = False
    """Decode every cell as of each batch, and compare within batches."""
    batchid1: tuple[int, ...] | None = None
    """Codes of the batches that the first population is decoded as; all where None."""
    batchid2: tuple[int, ...] | None = None
    """The same of the second population."""
    fdr_target: float = 0.05
    """Expected share of false discoveries among the genes that are called."""
    importance: ImportanceOptions | None = None
    """Weigh draws by how likely they make the population; not weighed where None."""
    filter_outlier_cells: bool = False
    """Leave out cells that lie apart from their population in the latent space."""
    n_samples_overall: int = 5_000
    """Draws that describe each population; see :mod:`scvi_dist.analysis.differential.draws`."""
    use_permutation: bool = False
    """Pair draws at random, with replacement."""
    m_permutation: int = 10_000
    """So many pairs then."""
    change_fn: Callable[..., Any] | None = None
    """Effect size of two arrays ``[pairs, genes]`` and the pseudocount; LFC where None."""
    m1_domain_fn: Callable[..., Any] | None = None
    """Of effect sizes, whether each is a change upwards, and whether downwards."""
    pseudocounts: float | None = None
    """Added to both scales; found from genes that are not expressed where None."""
    threshold_counts: float = 0.01
    """Mean count below which a gene is not expressed in a population."""
    test_mode: Literal["two", "three"] = "three"
    """``"two"``: a change is one upwards or downwards; ``"three"``: the likelier of both."""
    cred_interval_lvls: tuple[float, ...] = field(default=())
    """Levels of the credible intervals of the LFC, in (0, 1)."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        _choice("mode", self.mode, ("vanilla", "change"))
        _choice("estimator", self.estimator, ("sample", "full"))
        _choice("test_mode", self.test_mode, ("two", "three"))
        if self.delta is not None and not self.delta >= 0:
            raise ConfigError(f"delta must be at least 0, or None; seen {self.delta}.")
        if self.pseudocounts is not None and not self.pseudocounts > 0:
            raise ConfigError(
                f"pseudocounts must be above 0, or None to find one; seen {self.pseudocounts}."
            )
        if self.n_samples_overall < 1 or self.m_permutation < 1:
            raise ConfigError(
                "n_samples_overall and m_permutation must be at least 1, seen "
                f"{self.n_samples_overall} and {self.m_permutation}."
            )
        for level in self.cred_interval_lvls:
            if not 0 < level < 1:
                raise ConfigError(f"cred_interval_lvls lie between 0 and 1, seen {level}.")
        for name in ("batchid1", "batchid2"):
            if getattr(self, name) is not None and not self.batch_correction:
                raise ConfigError(
                    f"{name} says as of which batches cells are decoded, so it needs "
                    "batch_correction=True."
                )
        if self.estimator == "full":
            self._check_full()

    def _check_full(self) -> None:
        custom = {
            "change_fn": self.change_fn is not None,
            "m1_domain_fn": self.m1_domain_fn is not None,
            "weights='importance'": self.importance is not None,
            "use_permutation": self.use_permutation,
        }
        for name, is_set in custom.items():
            if is_set:
                raise ConfigError(
                    f"{name} looks at single draws, which estimator='full' does not keep: set "
                    "estimator='sample'."
                )


def _choice(name: str, seen: str, valid: tuple[str, ...]) -> None:
    if seen not in valid:
        raise ConfigError(f"{name} must be one of {', '.join(valid)}; seen {seen!r}.")
