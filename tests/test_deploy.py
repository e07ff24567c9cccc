"""Everything that the files of deploy/ name exists: command options, routes, ports, variables, files, extras."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from clara_core.cli.main import app
from clara_core.engine.remote.http import KEY_VARIABLE
from clara_core.serving.app import build_app
from clara_core.serving.config import ServeConfig, checked_config
from clara_core.serving.gate import HEALTH

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PORT = ServeConfig().port


def loaded(path: str) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / path).read_text())
    assert isinstance(found, dict)
    return found


def instruction(name: str) -> str:
    """The last instruction of a kind in the Dockerfile."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix(name).strip() for line in lines if line.strip().startswith(f"{name} ")][-1]


def served(arguments: list[str]) -> dict[str, Any]:
    """Parse arguments of `clara serve`.

    Raises:
        click.ClickException: An option does not exist or has an invalid value.
    """
    command = typer.main.get_command(app).commands["serve"]
    return dict(command.make_context("serve", list(arguments)).params)


def container(folder: str) -> dict[str, Any]:
    [found] = loaded(f"kubernetes/{folder}/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    return dict(found)


COMMANDS = {
    "image": lambda: json.loads(instruction("CMD")),
    "compose": lambda: loaded("compose.yaml")["services"]["server"]["command"],
    "compose, gpu": lambda: loaded("compose.gpu.yaml")["services"]["server"]["command"],
    "kubernetes, cpu": lambda: container("cpu")["args"],
    "kubernetes, gpu": lambda: container("gpu")["args"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_ones_that_the_server_takes(name):
    told = served(COMMANDS[name]())
    assert told["port"] == PORT
    # The server can be reached from outside its container, and only with a key.
    config = checked_config({"host": told["host"], "key_file": told["key_file"]})
    assert not config.loopback
    assert told["key_file"] is not None


def test_a_command_that_is_wrong_is_noticed():
    with pytest.raises(Exception, match="No such option: --key-fil"):
        served(["pocket", "--key-fil=a"])


def test_the_image_is_made_of_what_is_there():
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    sources = {source for line in copied for source in shlex.split(line)}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= sources
    images = set(re.findall(r"^FROM python:(\d+)\.(\d+)-", DOCKERFILE, flags=re.MULTILINE))
    [(major, minor)] = images
    assert (int(major), int(minor)) >= tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    asked = [
        loaded("compose.gpu.yaml")["services"]["server"]["build"]["args"]["EXTRAS"],
        *re.findall(r"EXTRAS=(\S+)", DOCKERFILE),
    ]
    extras = {name for line in asked for name in line.split(",")}
    assert "serve" in extras
    assert extras <= set(PROJECT["optional-dependencies"])
    assert "torch==" in (ROOT / "constraints.txt").read_text()


def test_the_image_runs_as_somebody_and_is_told_to_end():
    user, group = instruction("USER").split(":")
    assert (int(user), int(group)) > (0, -1)
    assert json.loads(instruction("ENTRYPOINT")) == ["clara", "serve"]
    context = loaded("kubernetes/cpu/deployment.yaml")["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["runAsNonRoot"]


def test_ports_and_routes_are_those_of_the_server():
    assert int(instruction("EXPOSE")) == PORT
    assert f":{PORT}/health/ready" in DOCKERFILE
    assert loaded("compose.yaml")["services"]["server"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    [port] = container("cpu")["ports"]
    assert port == {"name": "http", "containerPort": PORT}
    [exposed] = loaded("kubernetes/cpu/service.yaml")["spec"]["ports"]
    assert (exposed["port"], exposed["targetPort"]) == (PORT, "http")
    probes = {
        name: container("cpu")[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert probes == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert set(probes.values()) <= set(HEALTH)
    assert loaded("ray/serve.yaml")["http_options"]["port"] == PORT


@pytest.mark.parametrize("folder", ["cpu", "gpu"])
def test_a_pod_has_the_time_that_its_server_needs_to_end(folder):
    told = served(container(folder)["args"])
    given = loaded("kubernetes/cpu/deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert told["drain_delay"] >= container("cpu")["readinessProbe"]["periodSeconds"]
    assert given > told["drain_delay"] + told["drain_seconds"]


def test_composed_servers_have_the_time_to_end_and_a_key_that_is_a_secret():
    compose = loaded("compose.yaml")
    server = compose["services"]["server"]
    assert int(server["stop_grace_period"].removesuffix("s")) > ServeConfig().drain_seconds
    [secret] = server["secrets"]
    assert str(served(server["command"])["key_file"]) == f"/run/secrets/{secret}"
    assert secret in compose["secrets"]
    assert set(compose["volumes"]) == {volume.partition(":")[0] for volume in server["volumes"]}
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()


def test_mounted_folders_are_those_that_are_used():
    pod = loaded("kubernetes/cpu/deployment.yaml")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container("cpu")["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert str(Path(served(container("cpu")["args"])["key_file"]).parent) == mounts["keys"]
    assert f"HF_HOME={mounts['models']} " in DOCKERFILE.replace("\\\n", " ")
    claims = loaded("kubernetes/gpu/models.yaml")["metadata"]["name"]
    [models] = loaded("kubernetes/gpu/deployment.yaml")["spec"]["template"]["spec"]["volumes"]
    assert models["persistentVolumeClaim"]["claimName"] == claims


def test_the_autoscaler_looks_at_a_metric_of_the_server():
    page = build_app().state.server.metrics.page().decode()
    [metric] = loaded("kubernetes/cpu/autoscaler.yaml")["spec"]["metrics"]
    assert f"\n{metric['pods']['metric']['name']} " in page


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_what_is_put_together_is_there(path):
    parts = yaml.safe_load(path.read_text())
    for name in (*parts["resources"], *(patch["path"] for patch in parts.get("patches", ()))):
        assert (path.parent / name).exists()


def test_replicas_of_ray_are_told_what_a_server_can_be_told():
    config = loaded("ray/serve.yaml")
    [application] = config["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {name}(values" in source
    [deployment] = application["deployments"]
    assert f'name="{deployment["name"]}"' in source
    told = checked_config({**application["args"], "host": config["http_options"]["host"]})
    assert told.key_file is not None


def test_variables_are_read_by_somebody():
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    assert set(re.findall(r"\bCLARA_[A-Z_]+\b", text)) <= {KEY_VARIABLE}
