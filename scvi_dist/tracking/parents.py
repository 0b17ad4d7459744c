"""Runs that belong to another run: an analysis, below the training of the model that it asks."""

import logging

from scvi_dist.tracking.mlflow_connection import Connection, brief

PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow's pages show a run below another."""

logger = logging.getLogger(__name__)


def experiment_of_run(tracking_uri: str, run_id: str) -> str | None:
    """Name of the experiment of a run; None, with a warning, where MLflow does not tell."""
    try:
        client = Connection(tracking_uri).client()
        run = client.get_run(run_id)
        return str(client.get_experiment(run.info.experiment_id).name)
    except Exception as error:  # any client of a tracking store raises its own
        logger.warning(
            "the run %s of the model is not in MLflow as it is set now (%s); the analysis is "
            "recorded without it.",
            run_id,
            brief(error),
        )
        return None
