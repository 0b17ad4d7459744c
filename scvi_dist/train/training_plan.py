"""The Lightning module that trains any scvi_dist module: loss, KL warm-up, metrics, optimizer."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scvi_dist.batch import CellBatch
from scvi_dist.errors import TrainingFailed
from scvi_dist.module.base import LossOutput
from scvi_dist.nn.noise import NoiseStream
from scvi_dist.nn.sync_batch_norm import Padding
from scvi_dist.train.adam import Adam
from scvi_dist.train.checkpoint import Cursor
from scvi_dist.train.configs import TrainingPlanConfig, World
from scvi_dist.train.diagnosis import LossWindow, describe_batch, failure_message
from scvi_dist.train.history import History
from scvi_dist.train.metrics import EpochSums, alone, elbo_metrics

OnEpoch = Callable[["TrainingPlan", Mapping[str, float], int], None]

VALIDATION_STREAM = 0x5CA1AB1E
"""Added to the seed, so that validation never shares noise with training."""


def kl_weight_at(config: TrainingPlanConfig, epoch: int, step: int) -> float:
    """scvi-tools' weight of the KL divergence: linear from its minimum to its maximum.

    Counted at the start, so that epoch 0 (or step 0) has the minimum; epochs win over steps.
    """
    slope = config.max_kl_weight - config.min_kl_weight
    if config.n_epochs_kl_warmup:
        done = epoch / config.n_epochs_kl_warmup
    elif config.n_steps_kl_warmup:
        done = step / config.n_steps_kl_warmup
    else:
        done = 1.0
    return config.max_kl_weight if done >= 1 else slope * done + config.min_kl_weight


class TrainingPlan(pl.LightningModule):
    """One training step, one validation step and the means of an epoch.

    The gradient is that of the mean over all cells of the global minibatch, and the noise depends
    on the seed, the step and the cell's place in that minibatch: neither depends on how many ranks
    share it. Nothing in a step waits for the device.

    Parameters
    ----------
    module
        Called as ``module(batch, loss_kwargs=...)``; gives ``(inference, generative, loss)``.
    config
        Optimizer, warm-up and learning-rate rule.
    n_train, n_validation
        Cells of the splits, over all ranks.
    where
        The store, for messages.
    n_recent
        Steps whose losses are remembered.
    padding
        What the module's synchronised batch norms look at.
    fused
        Whether the optimizer may use torch's fused kernels; mixed precision forbids it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: TrainingPlanConfig,
        *,
        n_train: int,
        n_validation: int = 0,
        seed: int = 0,
        world: World | None = None,
        where: str = "the store",
        n_recent: int = 10,
        padding: Padding | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.module = module
        self.config = config
        self.n_train, self.n_validation = n_train, n_validation
        self.seed = seed
        self.world = world or World()
        self.where = where
        self.cursor = Cursor()
        self.train_sums, self.validation_sums = EpochSums(), EpochSums()
        self.history = History()
        self.epoch_metrics: dict[str, float] = {}
        """Means of the epoch that ended last; cleared when the next one starts."""
        self.recent = LossWindow(n_recent)
        """Losses of the last steps."""
        self.on_epoch: OnEpoch | None = None
        """Called with the plan, the means and the number of each epoch that ends."""
        self.scheduler: ReduceLROnPlateau | None = None
        self.monitors_learning_rate = False
        """Whether the history holds the learning rate of each epoch, scheduler or not."""
        self._padding = padding or Padding()
        self._fused = fused
        self._noise = getattr(module, "noise", None)
        # A bound method, not the module: that would be registered a second time.
        self._call: Any = _compiled(module, config)
        self._loss_alone = None if config.compile else getattr(module, "objective", None)
        self.gradients: dict[nn.Parameter, Tensor] = {}
        """Derivatives of the last training loss by the parameters, where it has no graph."""
        self._loss_kwargs: dict[str, Any] = dict(config.loss_kwargs)
        self._loss_args = set(signature(module.loss).parameters)
        if "n_obs" in self._loss_args:
            self._loss_kwargs["n_obs"] = n_train

    @property
    def kl_weight(self) -> float:
        """Weight of the KL divergence at the cursor."""
        return kl_weight_at(self.config, self.cursor.epoch, self.cursor.global_step)

    @property
    def last_kl_weight(self) -> float | None:
        """Weight in the last training step; ``None`` for a module without one."""
        return self._loss_kwargs.get("kl_weight")

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks; all of them have to call it."""
        if self.world.size == 1:
            return alone(tensor)
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor)
        return tensor

    def training_step(self, batch: CellBatch, batch_idx: int) -> Tensor:
        if "kl_weight" in self._loss_args:
            self._loss_kwargs["kl_weight"] = self.kl_weight
        try:
            output = self._training_output(batch)
        except ValueError as error:
            # Distributions refuse parameters that are not finite before there is a loss.
            if "invalid values" not in str(error):
                raise
            raise TrainingFailed(self._diagnosis(batch)) from error
        self._add(self.train_sums, output, batch)
        objective = self._objective(output, batch)
        # In the same place: to give a module another attribute takes long.
        self.gradients.clear()
        if isinstance(output, LossOutput) and output.gradients is not None:
            self.gradients.update(output.gradients)
        parts = [*output.reconstruction_loss.values(), *output.kl_local.values()]
        rows, losses = batch.rows[: batch.n_real], [part.detach() for part in parts]
        self.recent.add(self.cursor.global_step, rows, objective.detach(), losses)
        return objective

    def validation_step(self, batch: CellBatch, batch_idx: int) -> None:
        # The weight stays that of the last training step, as in scvi-tools.
        if "kl_weight" in self._loss_args:
            self._loss_kwargs.setdefault("kl_weight", self.kl_weight)
        index = self.cursor.epoch * self.n_validation + batch.step
        output = self._run(batch, self.seed + VALIDATION_STREAM, index)
        self._add(self.validation_sums, output, batch)

    def _diagnosis(self, batch: CellBatch) -> str:
        here = self.cursor.global_step, describe_batch(batch, self.module)
        step, cells = self.recent.first_bad() or here
        return failure_message(step, self.cursor.epoch, self.world.rank, cells, self.where)

    def _training_output(self, batch: CellBatch) -> Any:
        """The loss of a training step and its terms; a plan with more to learn adds to it."""
        return self._run(batch, self.seed, self.cursor.global_step)

    def _run(self, batch: CellBatch, seed: int, step: int) -> Any:
        """The loss of a minibatch and its terms, for a plan that wants nothing else of it."""
        if self._loss_alone is None:
            return self._forward(batch, seed, step)[1]
        self._bind(batch, seed, step)
        return self._loss_alone(batch, **self._loss_kwargs)

    @contextmanager
    def unchanged_module(self, with_graph: bool) -> Iterator[None]:
        """Within it nobody changes the module but its weights, in place: steps take less time.

        Parameters
        ----------
        with_graph
            Whether the loss of a training step must be one that can be differentiated; else
            :attr:`gradients` may have the derivatives.
        """
        usual, prepare = self._loss_alone, getattr(self.module, "steps_objective", None)
        if usual is not None and prepare is not None:
            self._loss_alone = prepare(with_graph)
        try:
            yield
        finally:
            self._loss_alone = usual

    def _objective(self, output: Any, batch: CellBatch) -> Tensor:
        """What is minimised: its mean over ranks is the mean loss of the global minibatch."""
        return output.loss if batch.loss_scale == 1.0 else output.loss * batch.loss_scale

    def _forward(self, batch: CellBatch, seed: int, step: int) -> tuple[Any, Any]:
        """What the module infers of a minibatch, and its loss."""
        self._bind(batch, seed, step)
        if self.config.compile:
            # Sparse counts have another size in each batch; compiled code wants equal ones.
            batch = replace(batch, x=batch.dense_x(), labelled=None, _dense=[])
        inferred, _, output = self._call(batch, loss_kwargs=self._loss_kwargs)
        return inferred, output

    def _bind(self, batch: CellBatch, seed: int, step: int) -> None:
        """Let noise and batch norms know the cells that are computed next."""
        if self._noise is not None:
            stop = batch.start + batch.n_cells
            self._noise.at(seed, step, batch.start, stop, batch.n_global)
        self._padding.n_cells = batch.n_padding

    @torch.no_grad()
    def _add(self, sums: EpochSums, output: Any, batch: CellBatch) -> None:
        n = batch.n_real
        kl_global = output.kl_global_sum
        if not isinstance(kl_global, Tensor):
            kl_global = torch.as_tensor(kl_global, device=output.loss.device)
        per_batch = {"kl_global": kl_global.reshape(()) if kl_global.dim() else kl_global}
        sums.add(self._cell_sums(output, batch), per_batch, n, n / max(batch.n_global, 1))

    def _cell_sums(self, output: Any, batch: CellBatch) -> dict[str, Tensor]:
        """Name -> sum over the cells that count."""
        # A module's terms are over these cells: padding is in none of them.
        n, loss_sum = batch.n_real, getattr(output, "loss_sum", None)
        per_cell = {
            "loss": output.loss * n if loss_sum is None else loss_sum,
            "reconstruction_loss": output.reconstruction_loss_sum,
            "kl_local": output.kl_local_sum,
        }
        for name, value in (output.extra_metrics or {}).items():
            value = torch.as_tensor(value, device=output.loss.device)
            if value.dim() == 0:
                per_cell[name] = value * n
        return per_cell

    def on_train_epoch_start(self) -> None:
        self.epoch_metrics = {}

    def on_validation_epoch_start(self) -> None:
        self.validation_sums.reset()

    def on_validation_epoch_end(self) -> None:
        means = self.validation_sums.reduced(self.reduce).means()
        self._publish(elbo_metrics(means, "validation", self.n_validation))

    def on_train_epoch_end(self) -> None:
        means = self.train_sums.reduced(self.reduce).means()
        self._publish(elbo_metrics(means, "train", self.n_train))
        epoch = self.cursor.epoch
        # A limit of steps can end training inside an epoch: then the epoch is not over.
        if self.cursor.position >= self.n_train:
            self.train_sums.reset()
            self._step_scheduler()
            if self.monitors_learning_rate and self.scheduler is None:
                self._note_learning_rates()
            self.cursor = Cursor(epoch + 1, 0, self.cursor.global_step)
        if self.on_epoch is not None:
            self.on_epoch(self, self.epoch_metrics, epoch)

    def advance(self, batch: CellBatch) -> None:
        """Note that an optimizer step was made with a batch."""
        c = self.cursor
        self.cursor = Cursor(c.epoch, batch.position + batch.n_global, c.global_step + 1)

    def _publish(self, metrics: Mapping[str, float]) -> None:
        self.history.add(metrics, self.cursor.epoch)
        self.epoch_metrics.update(metrics)
        self.log_dict(dict(metrics), on_step=False, on_epoch=True, batch_size=1)

    def _step_scheduler(self) -> None:
        """Look at the metric of an epoch that was validated, and only then."""
        metric = self.epoch_metrics.get(self.config.lr_scheduler_metric)
        if self.scheduler is None or metric is None:
            return
        self.scheduler.step(metric)
        lr = self.scheduler.optimizer.param_groups[0]["lr"]
        name = f"lr-{type(self.scheduler.optimizer).__name__}"
        self.history.add({name: lr}, self.cursor.epoch)
        self.epoch_metrics[name] = lr

    def _note_learning_rates(self) -> None:
        """Record the rate of each optimizer under the name that Lightning's monitor gives it."""
        names: Counter[str] = Counter()
        for optimizer in self.trainer.optimizers:
            name = f"lr-{type(optimizer).__name__}"
            names[name] += 1
            place = "" if names[name] == 1 else f"-{names[name] - 1}"
            rate = {name + place: optimizer.param_groups[0]["lr"]}
            self.history.add(rate, self.cursor.epoch)
            self.epoch_metrics.update(rate)

    def configure_optimizers(self) -> Optimizer:
        params = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = self._new_optimizer(params)
        c = self.config
        if c.reduce_lr_on_plateau:
            # Stepped here and not by Lightning, which would do it after the epoch's checkpoint.
            self.scheduler = ReduceLROnPlateau(
                optimizer,
                factor=c.lr_factor,
                patience=c.lr_patience,
                threshold=c.lr_threshold,
                threshold_mode="abs",
                min_lr=c.lr_min,
            )
        return optimizer

    def _new_optimizer(self, params: list[nn.Parameter]) -> Optimizer:
        c = self.config
        if c.optimizer_creator is not None and c.optimizer == "Custom":
            # One from elsewhere may see a parameter as one vector, which needs rows in order.
            for parameter in params:
                parameter.data = parameter.data.contiguous()
            return c.optimizer_creator(params)
        kind = {"Adam": Adam, "AdamW": torch.optim.AdamW}[c.optimizer]
        fused = self._may_fuse or None
        return kind(params, lr=c.lr, eps=c.eps, weight_decay=c.weight_decay, fused=fused)

    @property
    def _may_fuse(self) -> bool:
        """Whether torch's fused optimizers work here."""
        on = (p.device.type for p in self.module.parameters() if p.requires_grad)
        return self._fused and all(device in ("cpu", "cuda") for device in on)

    def transfer_batch_to_device(
        self, batch: CellBatch, device: torch.device, dataloader_idx: int
    ) -> CellBatch:
        if device.type == "cpu":
            return batch
        # From memory that can be paged out CUDA copies only after all work before it is done.
        batch = batch.pin_memory() if device.type == "cuda" else batch
        return batch.to(device, non_blocking=True)

    def unbind_noise(self) -> None:
        """Give the module's noise back to torch's generator."""
        if self._noise is not None:
            self._noise.unbind()


def _compiled(module: nn.Module, config: TrainingPlanConfig) -> Callable[..., Any]:
    # A module whose work is code of its own has nothing to gain, and says so.
    if not config.compile or not getattr(module, "may_compile", True):
        return module.__call__
    NoiseStream.keep_out_of_compiled_code()
    return torch.compile(module.__call__, **{"dynamic": False, **(config.compile_kwargs or {})})
