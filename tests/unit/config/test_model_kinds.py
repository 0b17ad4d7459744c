"""A run file of each model: what it may say, what it must, and what holds where it says nothing."""

from dataclasses import fields
from math import ceil
from typing import Any

import pytest

from scvi_dist.config import MODELS, RunConfig, dump_run, parse_run
from scvi_dist.config.model_kinds import load
from scvi_dist.data.setup import SetupArgs
from scvi_dist.errors import ConfigError
from scvi_dist.train.configs import TrainingPlanConfig

NEEDED: dict[str, dict[str, str]] = {
    "SCVI": {},
    "SCANVI": {"labels_key": "label", "unlabeled_category": "Unknown"},
    "TOTALVI": {"protein_key": "proteins"},
    "CellAssign": {"markers": "markers.csv"},
}


def run_of(name: str, *overrides: str, leave_out: str = "") -> RunConfig:
    data = {"store": "a.zarr", **NEEDED[name]}
    lines = [f"data.{key}={value}" for key, value in data.items() if key != leave_out]
    return parse_run("output: {dir: out}", overrides=[*lines, f"model.name={name}", *overrides])


@pytest.mark.parametrize("name", MODELS)
def test_the_least_that_a_run_file_says(name: str) -> None:
    config = run_of(name)
    assert parse_run(dump_run(config)) == config
    assert config.model.kind is MODELS[name]
    assert all(config.makes.values()) == (config.makes["latent"] and config.makes["predictions"])
    for key in MODELS[name].required:
        with pytest.raises(ConfigError, match=rf"data\.{key}: {name} needs it|needs {key}"):
            run_of(name, leave_out=key)


@pytest.mark.parametrize("name", MODELS)
def test_keys_of_other_models_are_refused(name: str) -> None:
    kind = MODELS[name]
    own = {*kind.setup, *kind.required}
    others = {key for kind in MODELS.values() for key in (*kind.setup, *kind.required)} - own
    assert own <= {f.name for f in fields(SetupArgs)} | {"markers"}
    further = {"unlabeled_category": ["data.labels_key=label"]}
    for key in others:
        value = "[a]" if key == "protein_names" else "x"
        with pytest.raises(
            ConfigError, match=rf"{name} has no use for it|need (labels|protein)_key"
        ):
            run_of(name, f"data.{key}={value}", *further.get(key, []))
    for key in {key for kind in MODELS.values() for key in kind.arguments()} - set(
        kind.arguments()
    ):
        with pytest.raises(ConfigError, match=f"{name} has no argument '{key}'"):
            run_of(name, f"model.{key}=1")
    if not kind.learns_labels:
        with pytest.raises(ConfigError, match="learns from no labels"):
            run_of(name, "train.n_samples_per_label=5")


@pytest.mark.parametrize("name", MODELS)
def test_what_the_table_says_is_there(name: str) -> None:
    kind = MODELS[name]
    assert kind.model_class.__name__ == name
    assert set(kind.valid_values) >= {"gene_likelihood"} or not kind.has_latent
    for place in (kind.module, *kind.plans):
        assert load(place) is not None
    usual = {f.name for f in fields(kind.plan_class({}))}
    assert set(kind.plan) <= usual


def test_the_plan_is_the_models_own() -> None:
    assert type(run_of("SCVI").train.plan) is TrainingPlanConfig
    plan: Any = run_of("SCANVI", "train.plan.classification_ratio=7").train.plan
    assert plan.classification_ratio == 7
    assert type(plan).__name__ == "SemiSupervisedPlanConfig"
    plan = run_of("SCANVI", "train.plan.adversarial_classifier=true").train.plan
    assert type(plan).__name__ == "SemiSupervisedAdversarialPlanConfig"
    assert run_of("TOTALVI", "train.plan.adversarial_classifier=true").train.plan.lr == 4e-3
    with pytest.raises(ConfigError, match="no key 'classification_ratio'"):
        run_of("TOTALVI", "train.plan.classification_ratio=7")
    with pytest.raises(ConfigError, match="did you mean 'adversarial_classifier'"):
        run_of("SCANVI", "train.plan.adversarial_clasifier=true")


def test_defaults_are_those_of_the_models_train() -> None:
    totalvi, cellassign = run_of("TOTALVI").train, run_of("CellAssign").train
    assert (totalvi.fit.batch_size, totalvi.plan.lr) == (256, 4e-3)
    assert totalvi.plan.reduce_lr_on_plateau
    assert totalvi.fit.early_stopping is not None
    assert (cellassign.fit.batch_size, cellassign.fit.max_epochs) == (1024, 400)
    assert cellassign.fit.early_stopping is not None
    assert cellassign.fit.early_stopping.patience == 15
    assert cellassign.plan.weight_decay == 1e-10
    other = run_of("CellAssign", "train.early_stopping=false", "train.max_steps=9").train.fit
    assert (other.early_stopping, other.max_epochs, other.max_steps) == (None, None, 9)


@pytest.mark.parametrize("name", ["SCVI", "SCANVI", "TOTALVI"])
@pytest.mark.parametrize("total", [1, 2, 100, 12345])
def test_the_warm_up_takes_the_first_third_of_the_steps(name: str, total: int) -> None:
    train = run_of(name).train
    plan = train.plan_for(total)
    assert plan.n_epochs_kl_warmup is None
    assert plan.n_steps_kl_warmup == ceil(total / 3)
    assert type(plan) is type(train.plan)
    assert run_of(name, "train.kl_warmup_fraction=1").train.plan_for(total).n_steps_kl_warmup == (
        total
    )


def test_the_warm_up_can_be_given_in_epochs_or_steps() -> None:
    by_epochs = run_of("SCVI", "train.plan.n_epochs_kl_warmup=10").train
    assert by_epochs.plan_for(600) == by_epochs.plan
    assert by_epochs.plan.n_epochs_kl_warmup == 10
    as_scvi_tools = run_of("SCVI", "train.kl_warmup_fraction=null").train
    assert as_scvi_tools.plan_for(600).n_epochs_kl_warmup == 400
    with pytest.raises(ConfigError, match="say the same thing"):
        run_of("SCVI", "train.plan.n_epochs_kl_warmup=10", "train.kl_warmup_fraction=0.5")
    for wrong in ("0", "1.5"):
        with pytest.raises(ConfigError, match="kl_warmup_fraction: expected a part"):
            run_of("SCVI", f"train.kl_warmup_fraction={wrong}")


def test_sections_that_are_no_sections_are_refused() -> None:
    for text in ("train: 3", "train: {plan: 3}", "model: SCVI", "model: {name: 3}"):
        with pytest.raises(ConfigError):
            parse_run(f"data: {{store: a.zarr}}\noutput: {{dir: out}}\n{text}")


def test_the_adversary_follows_from_the_data_unless_it_is_said() -> None:
    assert run_of("TOTALVI").train.adversary_where_proteins_lack
    said = run_of("TOTALVI", "train.plan.adversarial_classifier=false").train
    assert not said.adversary_where_proteins_lack
    both = ("train.plan.adversarial_classifier=false", "train.adversary_where_proteins_lack=true")
    assert run_of("TOTALVI", *both).train.adversary_where_proteins_lack
    with pytest.raises(ConfigError, match="SCVI has no proteins"):
        run_of("SCVI", "train.adversary_where_proteins_lack=true")
