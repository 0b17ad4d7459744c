"""The record of a run in MLflow: the only part of scvi_dist that talks to it.

The driver starts the run, rank 0 attaches to it with a :class:`TrackingRef`. A caller makes
records; a background thread delivers them in batches, or keeps them on disk while MLflow does not
answer.
"""

from scvi_dist.tracking.config import ModelFacts, TrackingConfig, TrackingRef
from scvi_dist.tracking.download import download_model
from scvi_dist.tracking.tracker import NullTracker, Tracker
from scvi_dist.tracking.values import redact

__all__ = [
    "ModelFacts",
    "NullTracker",
    "Tracker",
    "TrackingConfig",
    "TrackingRef",
    "download_model",
    "redact",
]
