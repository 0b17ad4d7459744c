"""The main job: planning it, running it here or on a cluster, and the demo that runs it on a
simulated atlas.

Names load on first use: to ask a cluster for its jobs nothing is needed that trains.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.job.cluster_jobs import ClusterJobs, Job, JobFacts
    from scvi_dist.job.demo import DemoOptions, run_demo
    from scvi_dist.job.plan import JobPlan, plan_job
    from scvi_dist.job.recipe import JobResult, run_job
    from scvi_dist.job.submission import SubmitOptions, submit

_HOME = {
    "ClusterJobs": "cluster_jobs",
    "DemoOptions": "demo",
    "Job": "cluster_jobs",
    "JobFacts": "cluster_jobs",
    "JobPlan": "plan",
    "JobResult": "recipe",
    "SubmitOptions": "submission",
    "plan_job": "plan",
    "run_demo": "demo",
    "run_job": "recipe",
    "submit": "submission",
}

__all__ = [
    "ClusterJobs",
    "DemoOptions",
    "Job",
    "JobFacts",
    "JobPlan",
    "JobResult",
    "SubmitOptions",
    "plan_job",
    "run_demo",
    "run_job",
    "submit",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
