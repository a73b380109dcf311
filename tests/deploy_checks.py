"""What is wrong with the files of deploy/: each by its schema, and with each other."""

import json
import re
import shlex
import tomllib

import click
import ray.scripts.scripts as ray_cli
import typer.main
import yaml
from deploy_models import KINDS, Compose, Datasources, Prometheus, Providers
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from fleet.cli import app
from fleet.loading import load
from fleet.metrics import METRICS
from hostsim.core.errors import HugefleetError

INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
FILES = ("kuberay-cluster.yaml", "kuberay-job.yaml", "launcher-aws.yaml", "launcher-local.yaml")
ALL_FILES = (*FILES, "compose.yaml", "Dockerfile", "README.md")


def problems(root):
    """Return everything that is wrong in a checkout, a sentence each."""
    return [
        *dockerfile_problems(root),
        *compose_problems(root),
        *launcher_problems(root),
        *kuberay_problems(root),
        *command_problems(root),
        *agreement_problems(root),
        *metrics_problems(root),
    ]


def project_of(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


def instructions(text):
    """Return the instructions of a Dockerfile: comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [line.split(None, 1) for line in joined.splitlines() if line.strip()]


def dockerfile_problems(root):
    found = []
    known = instructions((root / "deploy" / "Dockerfile").read_text())
    allowed = (root / ".dockerignore").read_text().splitlines()
    stages, copied, user = set(), set(), "root"
    for word, rest in known:
        if word not in INSTRUCTIONS:
            found.append(f"Dockerfile: {word} is no instruction that is used here")
        elif word == "FROM":
            image, *named = rest.split(" AS ")
            stages |= set(named)
            user = "root"
            tag = image.rpartition(":")[2] if ":" in image else ""
            if image not in stages and not re.match(r"\d+\.\d+\.\d+", tag):
                found.append(f"Dockerfile: base image {image} has no tag of three numbers")
        elif word == "USER":
            user = rest
        elif word == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                copied.add(source)
                if not (root / source).exists():
                    found.append(f"Dockerfile: COPY {source}: there is no such file")
                if f"!{source}" not in allowed:
                    found.append(f"Dockerfile: COPY {source}: .dockerignore leaves it out")
        elif word == "COPY" and rest.split()[0].removeprefix("--from=") not in stages:
            found.append(f"Dockerfile: COPY {rest}: there is no such stage")
        elif word == "RUN" and "fleet warmup" in rest and user == "root":
            found.append("Dockerfile: the kernels are compiled as root, for a cache of root")
    if user == "root":
        found.append("Dockerfile: the image runs as root")
    if not any(word == "RUN" and "fleet warmup" in rest for word, rest in known):
        found.append("Dockerfile: the kernels are not compiled")
    project = project_of(root)
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    found += [f"Dockerfile: {name} is not copied" for name in sorted(needed - copied)]
    return found


def said_by(error, name):
    """Return pydantic's findings, one sentence each."""
    for one in error.errors():
        place = ".".join(map(str, one["loc"]))
        yield f"{name}: {place}: {one['msg']}"


def compose_problems(root):
    document = yaml.safe_load((root / "deploy" / "compose.yaml").read_text())
    own = {key: value for key, value in document.items() if not key.startswith("x-")}
    try:
        compose = Compose.model_validate(own)
    except ValidationError as error:
        return list(said_by(error, "compose.yaml"))
    mounted = [v.split(":")[0] for s in compose.services.values() for v in s.volumes]
    lost = [v for v in mounted if v.startswith(".") and not (root / "deploy" / v).exists()]
    dockerfiles = [s.build.dockerfile for s in compose.services.values() if s.build]
    lost += [d for d in dockerfiles if not (root / d).exists()]
    return [f"compose.yaml: no {path}" for path in lost]


MONITORING = {
    "prometheus.yaml": Prometheus,
    "grafana/provisioning/datasources/prometheus.yaml": Datasources,
    "grafana/provisioning/dashboards/hugefleet.yaml": Providers,
}


def metrics_problems(root):
    """Return what is wrong with what reads the metrics."""
    found = []
    for name, model in MONITORING.items():
        try:
            read = model.model_validate(yaml.safe_load((root / "deploy" / name).read_text()))
        except ValidationError as error:
            found += said_by(error, name)
            continue
        if name == "prometheus.yaml":
            found += scrape_problems(root, read)
    dashboard = json.loads((root / "deploy" / "grafana" / "hugefleet.json").read_text())
    return [*found, *(f"hugefleet.json: {said}" for said in dashboard_problems(dashboard))]


def scrape_problems(root, prometheus):
    """Return the nodes that nobody scrapes, or that export elsewhere."""
    services = yaml.safe_load((root / "deploy" / "compose.yaml").read_text())["services"]
    for config in prometheus.scrape_configs:
        for dns in config.dns_sd_configs:
            for name, service in services.items():
                words = " ".join(service.get("command", []))
                if "ray start" not in words:
                    continue
                if name not in dns.names:
                    yield f"prometheus.yaml: {name} is not scraped"
                if f"--metrics-export-port={dns.port}" not in words:
                    yield f"compose.yaml: {name} exports metrics elsewhere than at {dns.port}"


def dashboard_problems(dashboard):
    """Return what is wrong with a Grafana dashboard."""
    if not isinstance(dashboard.get("schemaVersion"), int) or not dashboard.get("uid"):
        yield "schemaVersion or uid is missing"
    variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
    if variables.get("datasource") != "datasource":
        yield "there is no variable for the datasource"
    charts = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    if len({panel["id"] for panel in dashboard["panels"]}) < len(dashboard["panels"]):
        yield "two panels have one id"
    known, used = {metric.exported for metric in METRICS}, set()
    for panel in charts:
        title = panel["title"]
        if not panel["fieldConfig"]["defaults"].get("unit") or not panel.get("description"):
            yield f"{title}: has no unit or description"
        for one in (panel, *panel["targets"]):
            if one["datasource"]["uid"] != "${datasource}":
                yield f"{title}: reads from a fixed datasource"
        for target in panel["targets"]:
            names = set(re.findall(r"\bray_\w+", target["expr"]))
            used |= names
            if not names <= known:
                yield f"{title}: nobody exports {sorted(names - known)}"
            unknown = set(re.findall(r"\$(\w+)", target["expr"])) - set(variables)
            if unknown:
                yield f"{title}: there is no variable {sorted(unknown)}"
    if known - used:
        yield f"no panel shows {sorted(known - used)}"
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    if len(set(places)) < len(places) or max(x for x, _ in places) > 23:
        yield "panels overlap, or are wider than the page"


def launcher_problems(root):
    found = []
    for name in FILES[2:]:
        document = yaml.safe_load((root / "deploy" / name).read_text())
        try:
            validate_config(prepare_config(document))
        except Exception as error:  # what Ray's own validators raise
            found.append(f"{name}: {str(error).splitlines()[0]}")
    return found


def kuberay_documents(root):
    for name in FILES[:2]:
        for document in yaml.safe_load_all((root / "deploy" / name).read_text()):
            yield name, document


def kuberay_problems(root):
    found = []
    for name, document in kuberay_documents(root):
        kind = KINDS.get(document.get("kind"))
        if kind is None:
            found.append(f"{name}: {document.get('kind')} is no kind that is used here")
            continue
        try:
            checked = kind.model_validate(document)
        except ValidationError as error:
            found += said_by(error, name)
            continue
        spec = getattr(checked.spec, "rayClusterSpec", checked.spec)
        if hasattr(spec, "headGroupSpec"):
            found += [f"{name}: {sentence}" for sentence in cluster_problems(spec)]
    return found


def cluster_problems(spec):
    """Return what the schema cannot say."""
    if spec.enableInTreeAutoscaling:
        yield "autoscaling is on: a run uses no CPU that comes later"
    if spec.authOptions.mode != "token":
        yield "anyone in the network may run code: authOptions.mode is not token"
    if spec.headGroupSpec.rayStartParams.get("num-cpus") != "0":
        yield "the head takes workers: num-cpus is not 0"
    groups = [spec.headGroupSpec, *spec.workerGroupSpecs]
    for group in groups:
        yield from start_problems([f"--{k}={v}" for k, v in group.rayStartParams.items()])
        for container in group.template.spec.containers:
            resources = container.resources
            if resources.requests != resources.limits:
                yield f"{container.name}: requests are not limits"
            if "." in resources.limits["cpu"] or resources.limits["cpu"].endswith("m"):
                yield f"{container.name}: a worker takes a whole CPU"


def start_problems(words):
    """Return what `ray start` itself says about its options."""
    try:
        ray_cli.start.make_context("ray start", list(words))
    except click.UsageError as error:
        yield f"ray start {shlex.join(words)}: {error.format_message()}"


def strings(value):
    """Return every string of a YAML document; a list of words is one command."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        if value and all(isinstance(word, str) for word in value):
            yield " ".join(value)
            yield from (word for word in value if " " in word)
        else:
            for inner in value:
                yield from strings(inner)


def texts(root, name):
    """Return the pieces of a file in which commands may stand."""
    text = (root / "deploy" / name).read_text()
    if name.endswith(".yaml"):
        for document in yaml.safe_load_all(text):
            yield from strings(document)
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    elif name == "Dockerfile":
        for word, rest in instructions(text):
            if word in ("RUN", "CMD"):
                yield re.sub(r'[][",]+', " ", rest)
        return
    yield re.sub(r"\\\n#? *", " ", text)


def commands(root):
    """Return (file, words) of every `fleet` and `ray start` command of the files."""
    for name in ALL_FILES:
        for text in texts(root, name):
            for line in re.findall(r"(?<![\w./-])(?:fleet|ray start) +[^'\"`&#|>\n)]*", text):
                words = shlex.split(line.split("; ")[0])
                if len(words) > 1 and "..." not in words:
                    yield name, words


def command_problems(root):
    found = []
    for name, words in commands(root):
        if words[0] == "ray":
            found += [f"{name}: {sentence}" for sentence in start_problems(words[2:])]
        else:
            found += [f"{name}: {sentence}" for sentence in fleet_problems(words[1:])]
    return found


def fleet_problems(words):
    """Return what the command line itself says about a command, scenario and fields included."""
    root = typer.main.get_command(app)
    if words[0].startswith("-"):
        return
    command = root.commands.get(words[0])
    if command is None:
        yield f"fleet {words[0]}: there is no such command"
        return
    if len(words) == 1:  # named, not to be typed
        return
    try:
        context = command.make_context("fleet", words[1:])
    except Exception as error:
        if not hasattr(error, "format_message"):  # of click, which typer may carry in itself
            raise
        yield f"fleet {shlex.join(words)}: {error.format_message()}"
        return
    if words[0] == "run":
        try:
            load(context.params["scenario"], list(context.params["set_"] or []))
        except HugefleetError as error:
            yield f"fleet {shlex.join(words)}: {error}"


def agreement_problems(root):
    """Return where the files disagree with each other and with the project."""
    text = {name: (root / "deploy" / name).read_text() for name in ALL_FILES}
    project = project_of(root)["project"]
    found = []
    images = {
        (name, image)
        for name in ALL_FILES
        for image in re.findall(r"[\w./-]+/hugefleet:[\w.-]+", text[name])
    }
    if len({image for _, image in images}) > 1:
        found.append(f"images differ: {sorted(images)}")
    for name, image in sorted(images):
        if image.rpartition(":")[2] != project["version"]:
            found.append(f"{name}: {image} is not of version {project['version']}")
    versions = {
        (name, version)
        for name in ALL_FILES
        for version in re.findall(r"(?:RAY_VERSION=|rayVersion: )(\S+)", text[name])
    }
    if len({version for _, version in versions}) > 1:
        found.append(f"versions of Ray differ: {sorted(versions)}")
    wanted = next(Requirement(r) for r in project["dependencies"] if r.startswith("ray"))
    found += [
        f"{name}: Ray {version} is not {wanted.specifier}"
        for name, version in sorted(versions)
        if version not in wanted.specifier
    ]
    pythons = re.findall(r"FROM python:([\d.]+)", text["Dockerfile"])
    if len(set(pythons)) != 1 or pythons[0] not in SpecifierSet(project["requires-python"]):
        found.append(f"Dockerfile: Python {pythons} is not one of {project['requires-python']}")
    return found
