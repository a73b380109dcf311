"""The files of deploy/ against their schemas, the command line and each other; and the checks."""

import shutil
from pathlib import Path

import pytest
from deploy_checks import commands, problems

ROOT = Path(__file__).resolve().parents[1]


def test_nothing_is_wrong():
    assert problems(ROOT) == []


def test_commands_are_found():
    found = [(name, words[0], words[1]) for name, words in commands(ROOT)]
    for name in ("compose.yaml", "launcher-aws.yaml", "launcher-local.yaml", "README.md"):
        assert (name, "fleet", "run") in found
        assert (name, "ray", "start") in found
    for name in ("kuberay-cluster.yaml", "kuberay-job.yaml"):
        assert (name, "fleet", "run") in found
    assert ("Dockerfile", "fleet", "warmup") in found


@pytest.fixture
def checkout(tmp_path):
    """What the checks read, to be spoilt."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    for name in (".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("fleet", "guestsim", "hostsim", "scenarios"):
        (tmp_path / package).mkdir()
    return tmp_path


def test_copy_is_as_good(checkout):
    assert problems(checkout) == []


GRAFANA = "deploy/grafana/hugefleet.json"
MISTAKES = [
    ("deploy/Dockerfile", "python:3.11.13-slim", "python:latest-slim", "has no tag of three"),
    ("deploy/Dockerfile", "COPY scenarios scenarios", "COPY scenario scenario", "no such file"),
    ("deploy/Dockerfile", "COPY guestsim guestsim\n", "", "guestsim is not copied"),
    ("deploy/Dockerfile", "USER fleet\n", "", "runs as root"),
    ("deploy/Dockerfile", "RUN fleet warmup", "RUN fleet warm-up", "no such command"),
    ("deploy/Dockerfile", "RUN fleet warmup\n", "", "kernels are not compiled"),
    ("deploy/Dockerfile", "--from=build", "--from=builder", "no such stage"),
    ("deploy/Dockerfile", "WORKDIR /home", "WORKDIRECTORY /home", "is no instruction"),
    ("deploy/Dockerfile", "RAY_VERSION=2.60.0", "RAY_VERSION=2.59.0", "versions of Ray differ"),
    (".dockerignore", "!hostsim\n", "", ".dockerignore leaves it out"),
    ("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"', "is not of version 0.2.0"),
    ("pyproject.toml", '"ray>=2.40"', '"ray>=2.70"', "Ray 2.60.0 is not >=2.70"),
    ("pyproject.toml", '">=3.11"', '">=3.12"', "is not one of >=3.12"),
    ("deploy/compose.yaml", "shm_size", "shm_bytes", "Extra inputs are not permitted"),
    ("deploy/compose.yaml", "interval: 5s", "interval: 5", "services.head.healthcheck.interval"),
    ("deploy/compose.yaml", "- runs:/runs", "- run:/runs", "mounts run, which is no volume"),
    ("deploy/compose.yaml", "--num-cpus=2", "--num-cpu=2", "No such option"),
    ("deploy/compose.yaml", "--set run.duration=6h", "--set run.length=6h", "run.length"),
    ("deploy/compose.yaml", "fleet run churn", "fleet run chrun", "chrun"),
    ("deploy/compose.yaml", "hugefleet:0.1.0", "hugefleet:0.1.1", "images differ"),
    ("deploy/launcher-aws.yaml", "max_workers: 8\nidle", "max_workers: 7\nidle", "smaller than"),
    ("deploy/launcher-aws.yaml", "head_node_type: head", "head_node_type: top", "must be one of"),
    ("deploy/launcher-local.yaml", "file_mounts:", "files:", "'files' was unexpected"),
    ("deploy/launcher-local.yaml", "--out /shared", "--output /shared", "No such option"),
    ("deploy/kuberay-cluster.yaml", "groupName", "group", "groupName: Field required"),
    ("deploy/kuberay-cluster.yaml", 'num-cpus: "0"', "num-cpus: 0", "valid string"),
    ("deploy/kuberay-cluster.yaml", 'num-cpus: "0"', 'num-cpus: "1"', "the head takes workers"),
    ("deploy/kuberay-cluster.yaml", "num-cpus", "cpus", "No such option"),
    ("deploy/kuberay-cluster.yaml", "ing: false", "ing: true", "autoscaling is on"),
    ("deploy/kuberay-cluster.yaml", "mode: token", "mode: disabled", "anyone in the network"),
    ("deploy/kuberay-cluster.yaml", "replicas: 4", "replicas: 5", "outside of their range"),
    ("deploy/kuberay-cluster.yaml", "memory: 8Gi}\n", "memory: 8G}\n", "should match pattern"),
    ("deploy/kuberay-cluster.yaml", "{name: runs, mount", "{name: run, mount", "is no volume"),
    ("deploy/kuberay-job.yaml", "kind: RayJob", "kind: RayTask", "is no kind"),
    ("deploy/kuberay-job.yaml", "backoffLimit", "retries", "backoffLimit: Field required"),
    ("deploy/kuberay-job.yaml", 'requests: {cpu: "4"', 'requests: {cpu: "3"', "not limits"),
    ("deploy/kuberay-job.yaml", 'cpu: "4"', "cpu: 4500m", "takes a whole CPU"),
    ("deploy/kuberay-job.yaml", "--address auto", "--adress auto", "No such option"),
    ("deploy/compose.yaml", "./prometheus.yaml", "./prometheus.yml", "no ./prometheus.yml"),
    (
        "deploy/compose.yaml",
        "num-cpus=2, --metrics",
        "num-cpus=2, --no-metrics",
        "elsewhere",
    ),
    ("deploy/prometheus.yaml", "[head, worker", "[head, workers", "worker is not scraped"),
    ("deploy/prometheus.yaml", "job_name", "job", "scrape_configs.0.job_name"),
    (GRAFANA, "ray_hugefleet_oom_kills_total", "ray_hugefleet_oom_kill_total", "nobody exports"),
    (GRAFANA, "ray_hugefleet_vms{", "ray_hugefleet_hosts{", "no panel shows ['ray_hugefleet_vms']"),
    (GRAFANA, '"unit": "bytes"', '"units": "bytes"', "has no unit"),
    (GRAFANA, '"name": "seed"', '"name": "seeds"', "no variable ['seed']"),
    (GRAFANA, '"uid": "${datasource}"', '"uid": "prometheus"', "a fixed datasource"),
    (GRAFANA, '"w": 8,', '"w": 9,', "panels overlap"),
    ("deploy/README.md", "fleet warmup", "fleet warm", "no such command"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "said"), MISTAKES)
def test_mistake_is_found(checkout, name, right, wrong, said):
    text = (checkout / name).read_text()
    assert right in text
    (checkout / name).write_text(text.replace(right, wrong))
    assert any(said in problem for problem in problems(checkout)), problems(checkout)
