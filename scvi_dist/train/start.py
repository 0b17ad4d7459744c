"""Where a run starts: at the beginning, or at a checkpoint that all ranks see."""

import torch.distributed as dist

from scvi_dist.errors import CheckpointError, OutputExists
from scvi_dist.train.checkpoint import Checkpoint, checkpoints_dir, latest_checkpoint
from scvi_dist.train.configs import World
from scvi_dist.train.fit_job import FitJob

READ_PLAN = "read_plan"
"""Among a checkpoint's facts: the settings of the read plan, to make it again."""


def starting_point(job: FitJob) -> Checkpoint | None:
    """The checkpoint that a job goes on from; ``None`` to train from the start.

    Raises
    ------
    OutputExists
        If there are checkpoints that the job did not ask to resume from.
    """
    if job.run_dir is None:
        return None
    found = latest_checkpoint(job.run_dir)
    if found is not None and not job.resume:
        raise OutputExists(
            f"{checkpoints_dir(job.run_dir)} holds a checkpoint of step "
            f"{found.cursor.global_step}. Set resume=True to go on from it, or choose another "
            "run_dir to train anew."
        )
    return found


def common_start(job: FitJob, world: World) -> Checkpoint | None:
    """The starting point, if all ranks see the same one."""
    start = starting_point(job)
    if world.size > 1:
        mine = start.cursor.global_step if start else None
        seen: list[int | None] = [None] * world.size
        dist.all_gather_object(seen, mine)
        if len(set(seen)) > 1:
            raise CheckpointError(
                f"Ranks would resume from different checkpoints in {job.run_dir}: steps {seen} "
                "by rank. run_dir has to be on a disk that all hosts see."
            )
    return start
