"""The coordinator's settings file, and the study it proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lada_protocol.party_files import ModelSettings, PartySettings
from lada_protocol.settings import Settings
from lada_protocol.wire.envelope import StudyId
from lada_secure.data.forms import FormName
from lada_secure.method.plan import (
    AllocationPlan,
    DistillationPlan,
    PrivacyPlan,
    RationalesPlan,
    ReferenceModelPlan,
    StatisticsPlan,
    TrainingPlan,
    TransferPlan,
    VerifierPlan,
)
from lada_secure.models.identity import SlmPlan


class ServerSettings(PartySettings):
    """`server.toml`."""

    listen: Annotated[str, Field(description="host:port that sites and the auditor dial")]
    database: Annotated[
        str | None, Field(description="SQLAlchemy URL; default SQLite in state_dir")
    ] = None
    study: Annotated[Path, Field(description="study file to propose")]
    pool: Annotated[Path, Field(description="public pool, JSON Lines")]
    llm: Annotated[str, Field(description="model reference of the LLM")]
    cache_dir: Annotated[Path, Field(description="model weights")]
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    model: ModelSettings = ModelSettings()
    monitor: Annotated[
        str | None, Field(description="host:port of /healthz and /metrics; none by default")
    ] = None

    @property
    def board_file(self) -> Path:
        """The board's SQLite file, where no other database is named."""
        return self.state_dir / "board.sqlite"

    @property
    def database_url(self) -> str:
        """Of the board."""
        return self.database or f"sqlite:///{self.board_file}"


class StudySettings(Settings):
    """`study.toml`: the plan as an operator writes it; hashes and sizes are filled in."""

    study_id: StudyId
    title: Annotated[str, Field(max_length=200)]
    valid_days: Annotated[float, Field(gt=0, le=3650)]
    rounds: Annotated[int, Field(ge=1, le=1000)]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    slm: SlmPlan = SlmPlan()
    embedder: str
    seed: Annotated[int, Field(ge=0)] = 0
    phase_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    answer_form: FormName = "cloze"
    verifier: VerifierPlan = VerifierPlan()
    privacy: PrivacyPlan
    statistics: StatisticsPlan
    training: TrainingPlan
    distillation: DistillationPlan
    allocation: AllocationPlan
    paths: RationalesPlan
    uplink: TransferPlan | None = None
    guide: ReferenceModelPlan | None = None
