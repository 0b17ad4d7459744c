"""Lightning inside processes that someone else has started and connected.

For ``torchrun``, Slurm or a test: the caller has called ``torch.distributed.init_process_group``
and says which rank this is.
"""

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from scvi_dist.train.configs import World


class GivenWorld(LightningEnvironment):
    """Says what it was told; starts nothing."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._world.size

    def global_rank(self) -> int:
        return self._world.rank

    def local_rank(self) -> int:
        return self._world.local_rank

    def set_world_size(self, size: int) -> None:
        """Nothing to set: the world is given."""

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set: the world is given."""

    def teardown(self) -> None:
        """The process group is the caller's."""


class GivenProcessGroup(DDPStrategy):
    """DDP over the process group that is there, one device per process."""

    def __init__(self, world: World, forward_sync_buffers: bool) -> None:
        super().__init__(
            find_unused_parameters=False,
            forward_sync_buffers=forward_sync_buffers,
            gradient_as_bucket_view=True,
            cluster_environment=GivenWorld(world),
        )
        self._given = world

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        device = self.parallel_devices[0]
        return torch.device("cuda", self._given.local_rank) if device.type == "cuda" else device
