"""The main job: planning it, running it, and the demo that runs it on a simulated atlas."""

from scvi_dist.job.demo import DemoOptions, run_demo
from scvi_dist.job.plan import JobPlan, plan_job
from scvi_dist.job.recipe import JobResult, run_job

__all__ = ["DemoOptions", "JobPlan", "JobResult", "plan_job", "run_demo", "run_job"]
