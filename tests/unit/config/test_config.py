"""A run file is read to the letter, or refused with the place, the key and the nearest name."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.config import (
    MODELS,
    RunConfig,
    dump_run,
    load_run,
    parse_run,
    run_keys,
    run_tree,
)
from scvi_dist.config.run_file import dump, parse_run_file
from scvi_dist.errors import ConfigError
from scvi_dist.train.configs import TrainingPlanConfig

MINIMAL = "data: {store: atlas.zarr}\noutput: {dir: out}\n"


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted key, as a run file would say it."""
    value: Any = run_tree(config)
    for part in key.split("."):
        value = value[part]
    return value


def keys_of_scvi() -> list[str]:
    """Dotted keys that a run file of SCVI may have."""
    model = {"model.name", *(f"model.{key}" for key in MODELS["SCVI"].arguments())}
    plan = {f"train.plan.{f.name}" for f in fields(TrainingPlanConfig)}
    return [
        key
        for key in run_keys()
        if (not key.startswith("model.") or key in model)
        and (not key.startswith("train.plan.") or key in plan)
    ]


SECTIONS = ["", "data", "data.split", "model", "train", "train.plan", "train.loader", "train.ray"]
SECTIONS += ["train.early_stopping", "tracking", "output"]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_at_every_level_with_the_nearest_name(section: str) -> None:
    prefix = f"{section}." if section else ""
    siblings = [k for k in keys_of_scvi() if k.startswith(prefix) and "." not in k[len(prefix) :]]
    assert siblings
    for key in siblings:
        name = key.rpartition(".")[2]
        wrong = name + "x"
        with pytest.raises(ConfigError) as refused:
            parse_run(MINIMAL, overrides=[f"{prefix}{wrong}=1"])
        message = str(refused.value)
        assert repr(wrong) in message
        assert f"did you mean {name!r}?" in message


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"batch_key.*data\.batch_key"):
        parse_run(MINIMAL + "model: {batch_key: donor}\nbatch_key: b")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.max_epochs", "many", "a whole number"),
        ("train.max_epochs", "2.5", "a whole number"),
        ("train.max_epochs", "true", "a whole number"),
        ("train.plan.lr", "fast", "a number"),
        ("train.sync_batchnorm", "1", "true or false"),
        ("train.early_stopping.mode", "least", "'min', 'max'"),
        ("train.early_stopping", "5", "keys"),
        ("data.store", "{a: 1}", "text or a list of text"),
        ("data.categorical_covariate_keys", "donor", "a list of text"),
        ("data.storage_options", "[1]", "keys and values"),
        ("model.n_latent", "ten", "a whole number"),
        ("model.gene_likelihood", "zinp", "'zinb'"),
        ("model.name", "SCVJ", "'SCVI'"),
        ("tracking", "3", "keys below it"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_expected(key: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_run(MINIMAL, overrides=[f"{key}={text}"])
    assert key in str(refused.value)
    assert expected in str(refused.value)


@pytest.mark.parametrize("missing", ["data.store", "output.dir"])
def test_what_has_no_default_is_asked_for(missing: str) -> None:
    text = "output: {dir: out}" if missing.startswith("data") else "data: {store: a}"
    with pytest.raises(ConfigError, match=missing):
        parse_run(text)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.batch_size=0", "batch_size"),
        ("train.workers=-1", "workers"),
        ("data.split.train_size=2", "train_size"),
        ("tracking.uri=./mlruns", "tracking.uri"),
        ("tracking.alias=latest", "alias"),
        ("output.dir=' '", "dir"),
        ("output.map_cells=0", "map_cells"),
        ("data.genes_file=x", "genes_file"),
        ("train.early_stopping.monitor=elbo_train", "monitor"),
    ],
)
def test_what_the_owners_refuse_is_refused_before_anything_starts(override, named) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_run(MINIMAL + "train: {}", overrides=["data.genes=[A]", override])


@pytest.mark.parametrize("override", ["train.max_epochs", "=3", " =3", "a b"])
def test_an_override_that_is_none_is_shown_with_an_example(override: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.max_epochs=20"):
        parse_run(MINIMAL, overrides=[override])


def test_an_override_cannot_go_below_a_value() -> None:
    with pytest.raises(ConfigError, match=r"data\.store is a text"):
        parse_run(MINIMAL, overrides=["data.store.layer=3"])


def test_overrides_win_over_the_file_and_the_last_one_over_the_others() -> None:
    config = parse_run(
        MINIMAL + "train: {max_epochs: 5, plan: {lr: 0.1}}",
        overrides=["train.max_epochs=6", "train.max_epochs=7", "train.plan.weight_decay=1e-3"],
    )
    assert config.train.fit.max_epochs == 7
    assert config.train.plan.lr == 0.1
    assert config.train.plan.weight_decay == 1e-3


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("tracking.run_name=7", "7"),
        ("tracking.run_name=true", "true"),
        ("tracking.uri=off", "off"),
        ("data.store=[a.h5ad, b.h5ad]", ["a.h5ad", "b.h5ad"]),
        ("data.obs_filter=tissue == 'lung' and n > 5", "tissue == 'lung' and n > 5"),
        ("train.plan.lr=1e-4", 1e-4),
        ("data.split.permutation_limit=1e6", 1_000_000),
        ("train.max_epochs=null", None),
        ("train.devices=1", 1),
        ("train.devices=auto", "auto"),
        ("train.early_stopping=false", None),
    ],
)
def test_values_mean_what_they_look_like(override: str, value: Any) -> None:
    found = value_of(parse_run(MINIMAL, overrides=[override]), override.partition("=")[0])
    assert (list(found) if isinstance(found, tuple) else found) == value
    assert isinstance(found, bool) == isinstance(value, bool)


def test_true_switches_a_section_on_with_its_defaults() -> None:
    stopping = parse_run(MINIMAL, overrides=["train.early_stopping=true"]).train.fit.early_stopping
    assert stopping is not None
    assert stopping.monitor == "elbo_validation"


def test_every_default_that_is_written_out_reads_as_the_same_config() -> None:
    config = parse_run(MINIMAL, overrides=["train.early_stopping.patience=3", "model.n_latent=7"])
    assert parse_run(dump_run(config)) == config
    assert parse_run(MINIMAL) != config


NAMES = st.text(min_size=1, max_size=12).filter(lambda s: s.strip() and s.isprintable())


@given(
    store=st.lists(NAMES, min_size=1, max_size=3),
    directory=NAMES,
    epochs=st.one_of(st.none(), st.integers(0, 10**9)),
    lr=st.floats(1e-12, 1e3),
    tags=st.dictionaries(NAMES, NAMES, max_size=3),
    stop=st.booleans(),
)
def test_the_written_config_reads_as_the_same(store, directory, epochs, lr, tags, stop) -> None:
    tree = {
        "data": {"store": store},
        "train": {"max_epochs": epochs, "early_stopping": stop, "plan": {"lr": lr}},
        "tracking": {"tags": tags},
        "output": {"dir": directory},
    }
    config = parse_run(dump(tree))
    assert config.train.plan.lr == lr
    assert config.data.store == tuple(store)
    assert dict(config.tracking.tags) == tags
    assert parse_run(dump_run(config)) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("data: {store: a\noutput: x", "not valid YAML"),
        ("data: {store: a, store: b}", "given twice"),
        ("data:\n  store: a\n  store: b", "line 3"),
        ("- a\n- b", "sections"),
        ("just words", "sections"),
        ("data: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_run_file_is_one_clear_message(tmp_path: Path, text, named) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as refused:
        load_run(path)
    assert "run.yaml" in str(refused.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_run(tmp_path / "nowhere.yaml")
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError, match="store info"):
        load_run(tmp_path / "cells.h5ad")


def test_a_wrong_value_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml, line 4: train\.plan\.lr"):
        parse_run("data: {store: a}\ntrain:\n  plan:\n    lr: fast\noutput: {dir: o}", "my.yaml")


def test_words_of_old_yaml_stay_words() -> None:
    tree = parse_run_file("a: off\nb: no\nc: 2024-01-01\nd: 1:30\ne: 1e-3\nf: 010\ng: ~", "x").tree
    assert tree == {
        "a": "off",
        "b": "no",
        "c": "2024-01-01",
        "d": "1:30",
        "e": 0.001,
        "f": 10,
        "g": None,
    }


def test_workers_decide_the_world() -> None:
    for workers, world in ((0, 1), (1, 1), (4, 4)):
        train = parse_run(MINIMAL, overrides=[f"train.workers={workers}"]).train
        assert (train.world, train.ray_config.num_workers) == (world, world)


@pytest.mark.parametrize(
    ("override", "n_gpus", "expected"),
    [
        ("train.accelerator=gpu", 0, True),
        ("train.ray.use_gpu=true", 0, True),
        ("train.accelerator=auto", 0, False),
        ("train.accelerator=auto", 1, False),
        ("train.accelerator=auto", 2, True),
        ("train.accelerator=cpu", 2, False),
        ("train.ray.address=10.0.0.1:6379", 2, False),
    ],
)
def test_workers_get_gpus_if_asked_for_or_if_there_is_one_for_each(
    override: str, n_gpus: int, expected: bool, monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    train = parse_run(MINIMAL, overrides=["train.workers=2", override]).train
    assert train.ray_config.use_gpu == expected


def test_genes_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("A\n\n B \n")
    config = parse_run(MINIMAL, overrides=[f"data.genes_file={tmp_path}/genes.txt"])
    assert config.data.gene_list() == ("A", "B")
    assert parse_run(MINIMAL, overrides=["data.genes=[C]"]).data.gene_list() == ("C",)
    (tmp_path / "genes.txt").write_text("\n")
    for path in ("genes.txt", "absent.txt"):
        bad = parse_run(MINIMAL, overrides=[f"data.genes_file={tmp_path}/{path}"])
        with pytest.raises(ConfigError, match=path):
            bad.data.gene_list()


def test_no_key_has_two_owners() -> None:
    """Sections that stand beside each other under one heading must not share a name."""
    assert len(set(run_keys())) == len(run_keys())
    for section in fields(RunConfig):
        assert any(key.startswith(f"{section.name}.") for key in run_keys())


EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "run.yaml"


def test_the_example_is_a_run_file_with_every_section(tmp_path: Path) -> None:
    config = load_run(EXAMPLE)
    assert config.train.fit.early_stopping is not None
    assert config.train.plan.lr == 1e-3
    for section in SECTIONS[1:]:
        assert f"{section.rpartition('.')[2]}:" in EXAMPLE.read_text()


def test_the_example_can_be_planned_on_a_simulated_atlas(tmp_path: Path) -> None:
    from scvi_dist.data.simulated.simulate import simulate_atlas
    from scvi_dist.job import plan_job

    atlas = simulate_atlas(tmp_path / "atlas", n_cells=600, n_genes=20, n_shards=2)
    overrides = [f"data.store={atlas.zarr}", f"output.dir={tmp_path}/out"]
    plan = plan_job(load_run(EXAMPLE, overrides))
    assert (plan.n_cells, plan.workers, plan.output_state) == (600, 2, "new")


def test_reading_a_config_loads_no_engine() -> None:
    code = (
        "import sys, scvi_dist.config as c\n"
        "c.parse_run('data: {store: a}\\noutput: {dir: o}')\n"
        "heavy = {'ray', 'mlflow', 'lightning', 'h5py', 'zarr', 'dask', 'matplotlib', 'anndata'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
