"""What lies in deploy/: it says nothing to atoll that atoll does not know, and names what is there.

`make check` lints the same files with hadolint, shellcheck and the schema of compose files.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from atoll.cli.commands import COMMANDS, _load

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(DEPLOY.iterdir())}
CALL = re.compile(r"(?<![\w./-])(?:\S*/)?\"?atoll\"? (" + "|".join(COMMANDS) + r")\b([^\n|&;`']*)")


def calls():
    """Yield each command line of atoll in these files, with lines that go on put together."""
    for name, text in TEXTS.items():
        for match in CALL.finditer(
            re.sub(r"\\\n\s*#?", " ", text).replace('bin/atoll"', "bin/atoll")
        ):
            yield name, match[1], match[2]


def options_of(command):
    app = typer.Typer(add_completion=False)
    app.command()(_load(command))
    return {option for param in typer.main.get_command(app).params for option in param.opts}


def test_there_are_calls_to_look_at():
    assert {command for _, command, _ in calls()} >= {"host", "join", "new"}
    assert {name for name, _, _ in calls()} == set(TEXTS)


@pytest.mark.parametrize(("name", "command", "rest"), list(calls()))
def test_every_option_exists(name, command, rest):
    given = {word.partition("=")[0] for word in shlex.split(rest) if word.startswith("--")}
    assert given <= options_of(command), f"{name}: atoll {command}{rest}"


def test_the_script_is_one():
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)
    ran = subprocess.run(
        ["bash", DEPLOY / "slurm.sh"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert "ATOLL_INVITE" in ran.stderr


def test_what_the_image_copies_is_in_its_context():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", TEXTS["Dockerfile"])
    names = {name for line in copied for name in line.split()}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)


def test_the_image_opens_the_ports_that_atoll_listens_on():
    ports = set(re.search(r"EXPOSE (.+)", TEXTS["Dockerfile"])[1].split())
    app = typer.Typer()
    app.command()(_load("host"))
    defaults = {p.name: p.default for p in typer.main.get_command(app).params}
    app = typer.Typer()
    app.command()(_load("serve"))
    served = {p.name: p.default for p in typer.main.get_command(app).params}
    listened = [defaults["port"], defaults["reducer_port"], defaults["web"], served["port"]]
    assert ports == set(map(str, listened))


def test_compose_mounts_only_what_it_declares():
    compose = yaml.safe_load(TEXTS["compose.yaml"])
    mounted = {v.partition(":")[0] for s in compose["services"].values() for v in s["volumes"]}
    assert mounted == set(compose["volumes"])
    assert compose["services"]["peer"]["deploy"]["replicas"] == 2
    dockerfile = compose["x-atoll"]["build"]
    assert (DEPLOY / dockerfile["context"] / dockerfile["dockerfile"]).exists()


KINDS = list(yaml.safe_load_all(TEXTS["kubernetes.yaml"]))
SETS = [kind for kind in KINDS if kind["kind"] == "StatefulSet"]


@pytest.mark.parametrize("stateful", SETS, ids=lambda s: s["metadata"]["name"])
def test_a_stateful_set_mounts_selects_and_probes_what_it_has(stateful):
    spec, template = stateful["spec"], stateful["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    claimed = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    volumes = claimed | {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    if probe := container.get("readinessProbe"):
        assert probe["httpGet"]["port"] in {port["name"] for port in container["ports"]}


def test_the_service_is_that_of_the_host():
    (service,) = (kind for kind in KINDS if kind["kind"] == "Service")
    host = SETS[0]
    labels = host["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["metadata"]["name"] == host["spec"]["serviceName"]
    (container,) = host["spec"]["template"]["spec"]["containers"]
    opened = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == opened
    assert f"--advertise {service['metadata']['name']}" in container["args"][0]


def test_the_task_of_skypilot_has_what_such_a_task_may_have():
    task = yaml.safe_load(TEXTS["sky.yaml"])
    assert set(task) == {"name", "resources", "envs", "workdir", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "use_spot", "disk_size"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "ATOLL_INVITE" in task["envs"]
