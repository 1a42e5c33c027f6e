"""The auditor's settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lada_protocol.settings import Settings
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.logs import LogSettings


class AuditorSettings(Settings):
    """`auditor.toml`. Relative paths are relative to the file's own folder."""

    party: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    coordinator: Annotated[str, Field(description="host:port that the auditor dials")]
    identity: Annotated[
        Path, Field(description="folder with ca, tls and sign certificates and keys")
    ]
    roster: Annotated[Path, Field(description="roster file, agreed out of band")]
    roster_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    state_dir: Annotated[Path, Field(description="opening keys, ledgers of all sites, events")]
    export_dir: Annotated[Path, Field(description="where the files for `lada audit verify` go")]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    epsilon_cap: Annotated[float, Field(gt=0, description="refuse plans above this")]
    wait_s: Annotated[float, Field(gt=0)] = 600.0
    passphrase_file: Annotated[
        Path | None, Field(description="passphrase of encrypted private keys")
    ] = None
    transport: TransportSettings = TransportSettings()
    log: LogSettings = LogSettings()
