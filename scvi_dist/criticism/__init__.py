"""Posterior predictive checks: are the counts that a model draws like those observed?

Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.criticism.agreement import DEOptions
    from scvi_dist.criticism.check import PosteriorPredictiveCheck
    from scvi_dist.criticism.report import create_criticism_report

_HOME = {
    "DEOptions": "scvi_dist.criticism.agreement",
    "PosteriorPredictiveCheck": "scvi_dist.criticism.check",
    "create_criticism_report": "scvi_dist.criticism.report",
}

__all__ = ["DEOptions", "PosteriorPredictiveCheck", "create_criticism_report"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist.criticism' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
