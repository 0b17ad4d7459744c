import pickle

import pytest

from scvi_dist.errors import ConfigError, PrecisionWarning
from scvi_dist.train.configs import (
    EarlyStoppingConfig,
    RayConfig,
    TrainConfig,
    TrainingPlanConfig,
    World,
    heuristic_max_epochs,
)
from scvi_dist.train.precision import warn_of_mixed_precision

BAD = {
    "no cells in a batch": lambda: TrainConfig(batch_size=0),
    "a half epoch": lambda: TrainConfig(max_epochs=-1),
    "two devices": lambda: TrainConfig(devices=2),
    "an interval of nothing": lambda: TrainConfig(checkpoint_every_n_steps=0),
    "truth as a number": lambda: TrainConfig(log_every_n_steps=True),
    "numbers that cells do not have": lambda: TrainConfig(precision="64-true"),
    "halves on a CPU": lambda: TrainConfig(precision="16-mixed", accelerator="cpu"),
    "no patience": lambda: EarlyStoppingConfig(patience=0),
    "a mode that is none": lambda: EarlyStoppingConfig(mode="least"),
    "a training metric": lambda: EarlyStoppingConfig(monitor="elbo_train"),
    "an optimizer that is none": lambda: TrainingPlanConfig(optimizer="Adm"),
    "custom without a maker": lambda: TrainingPlanConfig(optimizer="Custom"),
    "weights upside down": lambda: TrainingPlanConfig(min_kl_weight=2.0),
    "a weight of its own": lambda: TrainingPlanConfig(loss_kwargs={"kl_weight": 1.0}),
    "an unknown name": lambda: TrainingPlanConfig.from_kwargs({"learning_rate": 1}),
    "no workers": lambda: RayConfig(num_workers=0),
    "fewer than none": lambda: RayConfig(num_workers=(0, 2)),
    "a range upside down": lambda: RayConfig(num_workers=(4, 2)),
    "three bounds": lambda: RayConfig(num_workers=(1, 2, 3)),
    "no patience at all": lambda: RayConfig(start_timeout_s=0),
    "an unknown compression": lambda: RayConfig(gradient_compression="int8"),
    "a rank too many": lambda: World(2, 2),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_nonsense_is_refused(make) -> None:
    with pytest.raises(ConfigError, match=r"got|is|has|needs|must"):
        make()


@pytest.mark.parametrize(
    ("precision", "accelerator", "warns"),
    [("32-true", "cpu", False), ("bf16-mixed", "cpu", True), ("bf16-mixed", "gpu", False)],
)
def test_mixed_precision_on_a_cpu_is_warned_of(
    precision: str, accelerator: str, warns: bool, recwarn: pytest.WarningsRecorder
) -> None:
    warn_of_mixed_precision(TrainConfig(precision=precision, accelerator=accelerator))
    assert [w.category for w in recwarn] == [PrecisionWarning] * warns


def test_a_near_name_is_offered() -> None:
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        TrainingPlanConfig.from_kwargs({"weight_decai": 0.1})


@pytest.mark.parametrize(
    ("n_cells", "epochs"), [(1, 400), (20_000, 400), (40_000, 200), (10**7, 1), (10**9, 1)]
)
def test_epochs_shrink_with_cells(n_cells: int, epochs: int) -> None:
    assert heuristic_max_epochs(n_cells) == epochs


@pytest.mark.parametrize(("workers", "cores"), [(1, 1), (2, 2), (4, 2), (2, 64), (3, 16)])
def test_a_local_ray_has_room_for_workers_and_readers(workers: int, cores: int) -> None:
    config = RayConfig(num_workers=workers)
    share = config.worker_resources(cores)["CPU"]
    assert share == max(1, cores // workers)
    assert config.local_cpus(cores) >= workers * share + config.reader_cpus


def test_a_range_of_workers_has_room_for_the_most() -> None:
    config = RayConfig(num_workers=(2, 6))
    assert (config.min_workers, config.max_workers, config.is_elastic) == (2, 6, True)
    assert not RayConfig(num_workers=(3, 3)).is_elastic
    assert config.local_cpus(1) == 7
    assert config.worker_resources(12) == {"CPU": 2}


def test_facts_are_json_and_tell_plans_apart() -> None:
    def sgd(parameters):
        raise NotImplementedError

    plans = [
        TrainingPlanConfig(),
        TrainingPlanConfig(lr=1e-2),
        TrainingPlanConfig(loss_kwargs={"a": 1}),
        TrainingPlanConfig(optimizer="Custom", optimizer_creator=sgd),
    ]
    facts = [repr(plan.facts()) for plan in plans]
    assert len(set(facts)) == len(plans)
    assert TrainingPlanConfig(compile=True).facts() == plans[0].facts()
    assert pickle.loads(pickle.dumps(plans[1])) == plans[1]
