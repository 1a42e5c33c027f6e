"""The auditor's settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lada_protocol.party_files import DiallingSettings


class AuditorSettings(DiallingSettings):
    """`auditor.toml`. `state_dir` keeps aggregate keys and the ledgers of all sites."""

    roster_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    export_dir: Annotated[Path, Field(description="where the files for `lada audit verify` go")]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    epsilon_cap: Annotated[float, Field(gt=0, description="refuse plans above this")]
