"""deploy/: every command parses, every path is one that `lada init` makes, nobody is root.

The files are read here and not run; deploy/README.md says what was tried beside this, and what not.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from lada_clients.setup.party_folder import CA, IDENTITY, known_templates
from lada_protocol.identity.credentials import UNLOCK_FILE_VARIABLE, UNLOCK_VARIABLE
from lada_protocol.kinds import Role
from lada_protocol.settings import parse_settings
from lada_secure.cli import build_app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ROLES = ("site", "auditor", "coordinator")
UNITS = {role: DEPLOY / "systemd" / f"lada-{role}.service" for role in ROLES}
MANIFESTS = {role: DEPLOY / "kubernetes" / f"{role}.yaml" for role in ROLES}
DOCKERFILE = DEPLOY / "containers" / "Dockerfile"
PRODUCT = {"lada_secure", "protocol", "clients", "server"}
# Read by libraries that the product stands on, or by the shell.
FOREIGN = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PGPASSFILE", "HOME", "PATH", "https_proxy"}
OF_POSTGRES = frozenset({"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"})
OF_PIP = frozenset({"PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"})


def check_command(words: list[str]) -> None:
    """Parse a command line of `lada` with the real commands; nothing is run."""
    # By what commands can do and not by their class: typer brings a copy of click.
    command: Any = get_command(build_app())
    context = command.make_context("lada", list(words))
    # `lada check` is a group that takes its file by itself.
    while hasattr(command, "resolve_command") and (
        rest := [*context._protected_args, *context.args]
    ):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def check_run(role: str, words: list[str], folder: Path, *, follows: bool = False) -> None:
    """That a command is a role's `run`, with the settings that `lada init` makes in a folder.

    Args: follows: from study to study; a coordinator never does, as a person proposes each.
    """
    check_command(words)
    settings = known_templates()[Role(role)].settings.file
    group = "server" if role == "coordinator" else role
    more = ["--follow"] if follows and role != "coordinator" else []
    assert words == [group, "run", *more, "--settings", str(folder / role / settings)]


def check_variables(names: set[str], *, beside: frozenset[str] = frozenset()) -> None:
    """That somebody reads them: our code, or a library that is named above."""
    assert not names - {UNLOCK_VARIABLE, UNLOCK_FILE_VARIABLE} - FOREIGN - beside


class _Several(dict[str, Any]):
    # A key may stand several times in a unit.
    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and key in self:
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


class Unit:
    """A unit file: each key's values, in order."""

    def __init__(self, path: Path) -> None:
        self.keys: dict[str, list[str]] = {}

        parser = configparser.RawConfigParser(
            strict=False, dict_type=_Several, comment_prefixes=("#",), delimiters=("=",)
        )
        parser.optionxform = str
        parser.read_string(path.read_text(encoding="utf-8"))
        self.sections = parser.sections()
        for section in self.sections:
            for key, value in parser.items(section):
                self.keys[key] = value.splitlines()

    def one(self, key: str) -> str:
        (value,) = self.keys[key]
        return value


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_runs_its_role_with_the_settings_that_init_makes(role: str) -> None:
    unit = Unit(UNITS[role])
    assert unit.sections == ["Unit", "Service", "Install"]
    program, *words = shlex.split(unit.one("ExecStart"))
    assert program == "/opt/lada/bin/lada"
    check_run(role, words, Path("/var/lib/lada"), follows=True)
    assert (unit.one("User"), unit.one("Group")) == ("lada", "lada")
    # Status 2 is the caller's mistake, of all errors of ours; see lada_secure/errors.py.
    assert (unit.one("Restart"), unit.one("RestartPreventExitStatus")) == ("on-failure", "2")
    assert int(unit.one("StartLimitBurst")) <= 5
    name, _, file = unit.one("LoadCredential").partition(":")
    assert file == f"/etc/lada/{role}.passphrase"
    variables = dict(word.split("=") for line in unit.keys["Environment"] for word in line.split())
    check_variables(set(variables))
    assert variables[UNLOCK_FILE_VARIABLE] == f"/run/credentials/%n/{name}"


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_can_write_its_own_folder_alone(role: str) -> None:
    unit = Unit(UNITS[role])
    for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "PrivateUsers", "RestrictSUIDSGID"):
        assert unit.one(key) == "yes", key
    assert unit.one("ProtectSystem") == "strict"
    assert unit.keys["CapabilityBoundingSet"] in ([], [""])
    assert unit.keys["SystemCallFilter"] == ["@system-service", "~@privileged"]
    # torch compiles kernels into memory; the auditor has no torch to run.
    assert ("MemoryDenyWriteExecute" in unit.keys) == (role == "auditor")
    assert unit.one("RestrictAddressFamilies") == "AF_INET AF_INET6 AF_UNIX"
    templates = known_templates()[Role(role)]
    folder = Path("/var/lib/lada") / role
    # What is written lies in `state_dir`, and the auditor's `export_dir`, of the settings.
    settings = parse_settings_of(role)
    assert settings["state_dir"] == "state"
    if role == "site":
        assert unit.one("StateDirectory") == f"lada/{role}/{settings['state_dir']}"
        assert "ReadWritePaths" not in unit.keys
        return
    assert unit.one("ReadWritePaths") == str(folder)
    read_only = unit.one("ReadOnlyPaths").split()
    assert read_only == [str(folder / IDENTITY), str(folder / templates.settings.file)]
    if role == "coordinator":
        assert unit.one("InaccessiblePaths") == f"-{folder / CA}"


def parse_settings_of(role: str) -> dict[str, Any]:
    """A role's settings as `lada init` makes them, with any answers."""
    template = known_templates()[Role(role)].settings

    class AnyAnswer(dict[str, Any]):
        def __missing__(self, key: str) -> str:
            return "localhost:7443" if key in ("coordinator", "listen") else "x"

        def __contains__(self, key: object) -> bool:
            return True

    fixed = {"roster_sha256": "0" * 64, "epsilon_cap": 4.0, "threads": 1, "passphrase_file": None}
    raw = template.filled(AnyAnswer(fixed, held_out=None))
    return parse_settings(raw, template.model, where=template.file).model_dump(mode="json")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_nothing_to_say(role: str, tmp_path: Path) -> None:
    # As installed, but for the program, which is not there.
    copy = tmp_path / UNITS[role].name
    copy.write_text(UNITS[role].read_text().replace("/opt/lada/bin/lada", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in found.stderr.splitlines() if copy.name in line]
    assert (found.returncode, said) == (0, []), found.stderr


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their arguments, in order."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def stages(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, those of the stages that it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for name, rest in instructions(path):
        if name == "FROM":
            source, _, current = rest.partition(" AS ")
            found[current] = list(found.get(source, []))
        elif current:
            found[current].append((name, rest))
    return found


def test_an_image_has_the_product_in_tested_versions_and_no_laboratory() -> None:
    everything = instructions(DOCKERFILE)
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE"}
    assert {name for name, _ in everything} == known | {"ENTRYPOINT", "CMD"}
    copied = {
        rest.split()[0] for name, rest in everything if name == "COPY" and "--from" not in rest
    }
    files = {"constraints.txt", "pyproject.toml", "README.md", "LICENSE"}
    sources = {rest.split()[:-1][0] for name, rest in everything if name == "COPY"} | {
        word
        for name, rest in everything
        if name == "COPY" and "--" not in rest
        for word in rest.split()[:-1]
    }
    assert {one for one in sources if not one.startswith("--")} == PRODUCT | files
    assert copied <= PRODUCT | files
    assert all((ROOT / one).exists() for one in PRODUCT | files)
    allowed = re.findall(
        r"(?m)^!(.+)$", (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text()
    )
    assert set(allowed) == PRODUCT | files
    installs = [
        command
        for name, rest in everything
        if name == "RUN"
        for command in rest.split(" && ")
        if "pip install" in command
    ]
    assert len(installs) == 4
    assert all("-c constraints.txt" in command for command in installs)
    assert any("import lada_lab" in rest for name, rest in everything if name == "RUN")
    variables = {
        word.split("=")[0] for name, rest in everything if name == "ENV" for word in rest.split()
    }
    check_variables(variables, beside=OF_PIP)
    # One Python for the image and for constraints.txt.
    (image,) = (rest for name, rest in everything if name == "ARG" and "PYTHON_IMAGE" in rest)
    (tested,) = re.findall(
        r"tested together on CPython (\S+?)\.$", (ROOT / "constraints.txt").read_text(), re.M
    )
    assert f"python:{tested}-slim" in image


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_its_role_as_nobody_s_user(role: str) -> None:
    stage = dict(stages(DOCKERFILE)[role])
    assert stage["USER"] == "10001:10001"
    assert yaml.safe_load(stage["ENTRYPOINT"]) == ["lada"]
    check_run(role, yaml.safe_load(stage["CMD"]), Path("/srv/lada"))
    assert stage["WORKDIR"] == "/srv/lada"
    assert "HOME=/srv/lada" in stage["ENV"]


def test_the_compose_file_has_a_coordinator_and_a_database_that_nobody_else_reaches() -> None:
    found = yaml.safe_load((DEPLOY / "containers" / "compose.yaml").read_text())
    services = found["services"]
    assert services.keys() == {"coordinator", "postgres"}
    for name, service in services.items():
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["secrets"]) <= set(found["secrets"])
        for key in ("POSTGRES_PASSWORD", "PGPASSWORD", UNLOCK_VARIABLE):
            assert key not in service["environment"], "a password is never in an environment"
        mounted = {f"/run/secrets/{secret}" for secret in service["secrets"]}
        named = {value for value in service["environment"].values() if value.startswith("/run/")}
        assert mounted == named
    coordinator, postgres = services["coordinator"], services["postgres"]
    check_run("coordinator", coordinator["command"], Path("/srv/lada"))
    build = coordinator["build"]
    assert (DEPLOY / "containers" / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE
    assert build["target"] in stages(DOCKERFILE)
    # Restarted by a person: a policy of compose cannot tell bad input from a crash.
    assert coordinator["restart"] == "no"
    assert "ports" not in postgres
    assert postgres["networks"] == ["board"]
    assert found["networks"]["board"] == {"internal": True}
    check_variables(set(coordinator["environment"]))
    check_variables(set(postgres["environment"]), beside=OF_POSTGRES)


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specifications of all pods that documents make."""
    found = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Job"]
    return found + [one["spec"] for one in documents if one["kind"] == "Pod"]


@pytest.mark.parametrize("role", ROLES)
def test_a_manifest_runs_its_role_without_rights_and_never_twice(role: str) -> None:
    documents = list(yaml.safe_load_all(MANIFESTS[role].read_text()))
    assert {one["metadata"]["namespace"] for one in documents} == {"lada"}
    kinds = [one["kind"] for one in documents]
    assert sorted(set(kinds) - {"Service"}) == [
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
    ]
    for pod in pods(documents):
        assert pod["restartPolicy"] == "Never"
        assert pod["automountServiceAccountToken"] is False
        outer = pod["securityContext"]
        assert (outer["runAsNonRoot"], outer["runAsUser"]) == (True, 10001)
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["image"].startswith(f"lada-{role}:")
        inner = container["securityContext"]
        assert inner["readOnlyRootFilesystem"] is True
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["capabilities"] == {"drop": ["ALL"]}
        check_variables({one["name"] for one in container["env"]})
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        assert (mounts["folder"], mounts["tmp"]) == ("/srv/lada", "/tmp")
        (variable,) = container["env"]
        assert variable["value"] == f"{mounts['passphrase']}/passphrase"
        # By reference: no manifest holds a secret.
        assert volumes["passphrase"]["secret"]["secretName"] == f"lada-{role}"
    assert "Secret" not in kinds
    (job,) = (one["spec"] for one in documents if one["kind"] == "Job")
    check_run(role, pods(documents)[0]["containers"][0]["args"], Path("/srv/lada"))
    assert (job["completions"], job["parallelism"]) == (1, 1)
    assert job["podFailurePolicy"]["rules"][0] == {
        "action": "FailJob",
        "onExitCodes": {"containerName": role, "operator": "In", "values": [2]},
    }
    (claim,) = (one["spec"] for one in documents if one["kind"] == "PersistentVolumeClaim")
    assert claim["accessModes"] == ["ReadWriteOncePod"]
    (policy,) = (one["spec"] for one in documents if one["kind"] == "NetworkPolicy")
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert ("ingress" in policy) == (role == "coordinator"), "only the coordinator is dialled"


def shown_commands() -> list[str]:
    """Lines of deploy/README.md that a person types."""
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    return [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]


def test_the_commands_of_the_page_parse_and_name_files_that_are_there() -> None:
    lines = shown_commands()
    subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=True)
    checked = 0
    for line in lines:
        words = shlex.split(line)
        for word in words:
            assert not word.startswith("deploy/") or (ROOT / word).exists(), word
        if words[0] == "lada-by-hand":
            assert words[1] in ROLES
            words = words[2:]
        elif words[0] == "lada-site":
            words = words[1:]
        elif words[:4] == ["docker", "compose", "run", "--rm"]:
            words = words[words.index("coordinator") + 1 :]
        elif words[:3] == ["docker", "compose", "exec"]:
            words = words[words.index("lada") + 1 :]
        else:
            continue
        check_command(words)
        checked += 1
    assert checked == 9


def test_what_people_type_by_hand_runs_as_the_services_user() -> None:
    script = DEPLOY / "systemd" / "lada-by-hand"
    subprocess.run(["sh", "-n", script], check=True)
    text = script.read_text()
    assert "exec runuser -u lada -- /opt/lada/bin/lada" in text
    check_variables(set(re.findall(r"([A-Za-z_]+)=", text)) - {"role"})
    assert script.stat().st_mode & 0o111
    (user,) = (
        line
        for line in (DEPLOY / "systemd" / "lada.sysusers.conf").read_text().splitlines()
        if line[:1] == "u"
    )
    assert shlex.split(user)[1] == "lada"
