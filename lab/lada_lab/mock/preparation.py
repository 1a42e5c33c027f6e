"""Everything that exists before the first process of a run starts.

Checks come first and write nothing; data is built in memory; only then is the run's folder made.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lada_lab.mock.layout import AUDITOR, COORDINATOR, PartyFolder, RunLayout
from lada_lab.mock.presets import Preset
from lada_lab.mock.supervisor import Child, Supervisor
from lada_lab.mock.toml_text import Table, toml_text
from lada_secure.canonical import sha256_hex
from lada_secure.data.records import write_json_lines
from lada_secure.errors import ParameterError, TransportError

if TYPE_CHECKING:
    from lada_lab.worlds.sites import FederationData

HOST = "localhost"
LOOPBACK = "127.0.0.1"
WAIT_S = 600.0


def check_out(out: Path) -> None:
    """Raises: ParameterError: `out` is a file, or a folder with something in it."""
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out {out}: is a file; name a new or an empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise ParameterError(
            f"--out {out}: the folder is not empty; name a new one, so that no earlier run is lost"
        )
    parent = next(one for one in (out, *out.absolute().parents) if one.exists())
    if not os.access(parent, os.W_OK):
        raise ParameterError(f"--out {out}: {parent} cannot be written to")


def free_port(wanted: int) -> int:
    """`wanted` if it is free on loopback; any free port if it is 0.

    Raises: ParameterError: the port is taken or not a port.
    """
    if not 0 <= wanted <= 65_535:
        raise ParameterError(f"--port: expected 0 to 65535, got {wanted}")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, wanted))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise ParameterError(
            f"--port {wanted}: cannot listen on {LOOPBACK}:{wanted} ({error.strerror}); stop what "
            "uses it, name another port, or leave the option out to take any free one"
        ) from error


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of every party: ours, without the network and with one thread a library."""
    return {
        **environment,
        "OMP_NUM_THREADS": "1",
        # Parties share the machine's cores: a thread that waits must not spin.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "COLUMNS": "400",
    }


def lada_command(*arguments: str | Path) -> tuple[str, ...]:
    """The operator's own command line, run by this very installation."""
    script = Path(sys.executable).with_name("lada")
    start = (
        (str(script),)
        if script.is_file()
        else (sys.executable, "-c", "from lada_secure.cli import main; main()")
    )
    return (*start, *(str(one) for one in arguments))


def write_data(layout: RunLayout, data: FederationData) -> None:
    """Write every site's private records and the coordinator's public pool.

    Raises: TransportError: the disk refuses.
    """
    try:
        for folder in layout.parties.values():
            folder.root.mkdir(parents=True)
            folder.state.mkdir()
        layout.ca.mkdir()
        write_json_lines(layout.coordinator.root / "pool.jsonl", data.pool)
        for site_id, site in data.sites.items():
            folder = layout.site(site_id)
            write_json_lines(folder.root / "records.jsonl", site.train)
            write_json_lines(folder.root / "held-out.jsonl", site.held_out)
    except OSError as error:
        raise TransportError(f"cannot write {error.filename}: {error.strerror}") from error


def make_identities(
    layout: RunLayout, supervisor: Supervisor, *, environment: Mapping[str, str]
) -> str:
    """CA, certificates and roster, by the commands that an operator uses.

    Returns: the roster's SHA-256, which every site's policy and the auditor's settings pin.
    Raises: TransportError: one of the commands failed.
    """

    def child(name: str, *arguments: str | Path) -> Child:
        return Child(
            name=name,
            arguments=lada_command("ca", *arguments),
            log=layout.ca / "log.txt",
            environment=environment,
        )

    supervisor.run_all([child("ca init", "init", layout.ca)])
    supervisor.run_all(
        [
            child(
                f"ca issue {party}",
                *("issue", layout.ca, "--role", layout.role(party), "--id", party),
                *("--out", folder.identity, "--host", HOST, "--host", LOOPBACK),
            )
            for party, folder in layout.parties.items()
        ]
    )
    folders = [("--party", folder.identity) for folder in layout.parties.values()]
    pairs = [argument for pair in folders for argument in pair]
    supervisor.run_all([child("ca roster", "roster", layout.ca, "--out", layout.roster, *pairs)])
    return sha256_hex(layout.roster.read_bytes())


def write_settings(
    layout: RunLayout,
    preset: Preset,
    *,
    port: int,
    roster_sha256: str,
    cache_dir: Path,
    seed: int,
) -> None:
    """Write every party's settings, the study file and the sites' policies.

    Raises: TransportError: the disk refuses.
    """
    tables = settings_tables(
        layout,
        preset,
        port=port,
        roster_sha256=roster_sha256,
        cache_dir=cache_dir,
        seed=seed,
    )
    try:
        for path, table in tables.items():
            path.write_text(toml_text(table), encoding="utf-8")
    except OSError as error:
        raise TransportError(f"cannot write {error.filename}: {error.strerror}") from error


def settings_tables(
    layout: RunLayout,
    preset: Preset,
    *,
    port: int,
    roster_sha256: str,
    cache_dir: Path,
    seed: int,
) -> dict[Path, Table]:
    """Every settings file of a run by its path."""
    address = f"{HOST}:{port}"
    coordinator, auditor = layout.coordinator, layout.auditor
    tables: dict[Path, Table] = {
        coordinator.settings: {
            **_common(coordinator, COORDINATOR, layout),
            "listen": f"{LOOPBACK}:{port}",
            "study": "study.toml",
            "pool": "pool.jsonl",
            "llm": preset.llm,
            "cache_dir": cache_dir,
            "threads": preset.coordinator_threads,
        },
        coordinator.root / "study.toml": study_table(preset, seed=seed),
        auditor.settings: {
            **_common(auditor, AUDITOR, layout),
            "coordinator": address,
            "roster_sha256": roster_sha256,
            "export_dir": Path(os.path.relpath(layout.export, auditor.root)),
            "epsilon_cap": preset.privacy.epsilon_cap,
            "wait_s": WAIT_S,
        },
    }
    for site_id in layout.site_ids:
        folder = layout.site(site_id)
        tables[folder.settings] = {
            **_common(folder, site_id, layout),
            "coordinator": address,
            "policy": "policy.toml",
            "records": "records.jsonl",
            "held_out": "held-out.jsonl",
            "cache_dir": cache_dir,
            "threads": preset.threads,
            "device": "cpu",
            "physical_batch_size": preset.physical_batch_size,
            "wait_s": WAIT_S,
        }
        tables[folder.root / "policy.toml"] = policy_table(
            preset, roster_sha256=roster_sha256, population=f"{site_id}.records"
        )
    return tables


def study_id_of(preset: Preset, *, seed: int) -> str:
    """The id of a mock study; ledgers of different runs never meet, so it need not be unique."""
    return f"mock-{preset.name}-{seed}"


def study_table(preset: Preset, *, seed: int) -> Table:
    """`study.toml`: the study as its operator proposes it."""
    optional = {
        name: part.model_dump(exclude_none=True)
        for name, part in (("uplink", preset.uplink), ("guide", preset.guide))
        if part is not None
    }
    return {
        "study_id": study_id_of(preset, seed=seed),
        "title": preset.title,
        "valid_days": 1.0,
        "rounds": preset.rounds,
        "min_cohort": 3,
        "slm": preset.slm,
        "embedder": preset.embedder,
        "seed": seed,
        "phase_timeout_s": preset.phase_timeout_s,
        "privacy": preset.privacy.model_dump(),
        "statistics": preset.statistics.model_dump(),
        "training": preset.training.model_dump(),
        "distillation": preset.distillation.model_dump(),
        "allocation": preset.allocation.model_dump(),
        "paths": preset.paths.model_dump(),
        **optional,
    }


def policy_table(preset: Preset, *, roster_sha256: str, population: str) -> Table:
    """`policy.toml` of a site that agrees to the preset's study and to nothing above it."""
    return {
        "roster_sha256": roster_sha256,
        "population": population,
        "target_delta": preset.privacy.target_delta,
        "epsilon_cap_per_study": preset.privacy.epsilon_cap,
        "epsilon_cap_total": preset.privacy.epsilon_cap,
        "min_cohort": 3,
        "max_records_per_unit": preset.privacy.max_records_per_unit,
        "pool_gradients": [preset.training.pool_gradients],
        "approval": "policy",
    }


def party_children(layout: RunLayout, *, environment: Mapping[str, str]) -> list[Child]:
    """The commands that run the parties, the coordinator's first."""
    commands = {COORDINATOR: "server", AUDITOR: "auditor"}
    return [
        Child(
            name=party,
            arguments=lada_command(
                commands.get(party, "site"), "run", "--settings", folder.settings
            ),
            log=folder.log,
            environment=environment,
        )
        for party, folder in layout.parties.items()
    ]


def _common(folder: PartyFolder, party: str, layout: RunLayout) -> dict[str, str | Path]:
    return {
        "party": party,
        "identity": "identity",
        "roster": Path(os.path.relpath(layout.roster, folder.root)),
        "state_dir": "state",
    }
