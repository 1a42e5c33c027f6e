"""Everything that exists before the first process of a run starts.

Checks come first and write nothing; data is built in memory; only then is the run's folder made.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w

from lada_clients.ca.authority import init_ca, issue_party, make_roster
from lada_lab.mock.layout import PartyFolder, RunLayout
from lada_lab.mock.presets import Preset
from lada_lab.mock.supervisor import Child
from lada_lab.worlds.sites import FederationData
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role
from lada_secure.data.records import write_json_lines
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import write_atomically

Table: TypeAlias = Mapping[str, Any]

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


def _write_data(layout: RunLayout, data: FederationData) -> None:
    """Every site's private records and the coordinator's public pool."""
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


def write_run(
    layout: RunLayout, preset: Preset, data: FederationData, *, port: int, cache_dir: Path
) -> None:
    """Write everything that a run's parties start from: data, identities, settings.

    Raises: ParameterError: the preset names an SLM for a site that there is not. TransportError:
        the disk refuses.
    """
    strangers = sorted(set(preset.slms) - set(layout.site_ids))
    if strangers:
        raise ParameterError(
            f"[slms] of the preset names {', '.join(strangers)}; the sites are "
            f"{', '.join(layout.site_ids)}"
        )
    _write_data(layout, data)
    tables = settings_tables(
        layout, preset, port=port, roster_sha256=_make_identities(layout), cache_dir=cache_dir
    )
    for path, table in tables.items():
        write_atomically(path, tomli_w.dumps(table).encode("utf-8"))


def _make_identities(layout: RunLayout) -> str:
    """CA, certificates and roster, by what stands behind `lada ca`.

    Returns: the roster's SHA-256, which every site's policy and the auditor's settings pin.
    """
    now, parties = datetime.now(UTC), layout.parties
    init_ca(layout.ca, name="mock", days=3650, now=now)
    for party, folder in parties.items():
        issue_party(
            layout.ca,
            party=PartyName(role=Role(folder.role), id=party),
            hosts=(HOST, LOOPBACK),
            days=365,
            out=folder.identity,
            now=now,
        )
    folders = [folder.identity for folder in parties.values()]
    return make_roster(layout.ca, parties=folders, out=layout.roster, now=now).hash


def settings_tables(
    layout: RunLayout, preset: Preset, *, port: int, roster_sha256: str, cache_dir: Path
) -> dict[Path, Table]:
    """Every settings file of a run by its path."""
    coordinator, auditor = layout.coordinator, layout.auditor
    dialling = {"coordinator": f"{HOST}:{port}", "wait_s": WAIT_S}
    tables: dict[Path, Table] = {
        coordinator.settings: {
            **_common(coordinator, layout),
            "listen": f"{LOOPBACK}:{port}",
            "study": "study.toml",
            "pool": "pool.jsonl",
            "llm": preset.llm,
            "model": {"device": "cpu"},
            "cache_dir": str(cache_dir),
            "threads": preset.coordinator_threads,
        },
        coordinator.root / "study.toml": preset.study_table(),
        auditor.settings: {
            **_common(auditor, layout),
            **dialling,
            "roster_sha256": roster_sha256,
            "export_dir": os.path.relpath(layout.export, auditor.root),
            "epsilon_cap": preset.privacy.epsilon_cap,
        },
    }
    for site_id in layout.site_ids:
        folder = layout.site(site_id)
        tables[folder.settings] = {
            **_common(folder, layout),
            **dialling,
            "policy": "policy.toml",
            "records": "records.jsonl",
            "held_out": "held-out.jsonl",
            "cache_dir": str(cache_dir),
            "threads": preset.threads,
            "physical_batch_size": preset.physical_batch_size,
            "model": {"slm": preset.slm_of(site_id), "device": "cpu"},
        }
        tables[folder.root / "policy.toml"] = policy_table(
            preset, roster_sha256=roster_sha256, population=f"{site_id}.records"
        )
    return tables


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


def party_children(layout: RunLayout) -> list[Child]:
    """The commands that run the parties, the coordinator's first."""
    environment = child_environment(os.environ)
    return [
        Child(
            name=party,
            arguments=lada_command(
                "server" if folder.role == "coordinator" else folder.role,
                *("run", "--settings", folder.settings),
            ),
            log=folder.log,
            environment=environment,
        )
        for party, folder in layout.parties.items()
    ]


def _common(folder: PartyFolder, layout: RunLayout) -> dict[str, str]:
    return {
        "party": folder.root.name,
        "identity": "identity",
        "roster": os.path.relpath(layout.roster, folder.root),
        "state_dir": "state",
    }
