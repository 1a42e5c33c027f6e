"""The coordinator's settings file, and the study it proposes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from lada_protocol.kinds import Role
from lada_protocol.party_files import Address, ModelSettings, PartySettings, model_beside
from lada_protocol.settings import Settings
from lada_protocol.wire.envelope import StudyId
from lada_secure.data.forms import AnswerForm, FormName, answer_form
from lada_secure.method.plan import (
    AllocationPlan,
    DistillationPlan,
    Positive,
    PrivacyPlan,
    RationalesPlan,
    ReferenceModelPlan,
    Seed,
    StatisticsPlan,
    TrainingPlan,
    TransferPlan,
    VerifierPlan,
)
from lada_secure.models.endpoint.http import Endpoint, read_key
from lada_secure.models.identity import SlmPlan


class EndpointSettings(Settings):
    """`llm` as a table: an LLM behind a server that speaks OpenAI's completions protocol."""

    endpoint: Annotated[str, Field(description="URL of the server's API, as https://host/v1")]
    model: Annotated[str, Field(min_length=1, max_length=200, description="name it is served by")]
    tokenizer: Annotated[
        Path, Field(description="folder with the served model's tokenizer; with weights for uplink")
    ]
    key_file: Annotated[Path | None, Field(description="file with the server's API key")] = None
    adapters: Annotated[
        Path | None,
        Field(description="folder that coordinator and server see under one path, for uplink"),
    ] = None
    concurrency: Annotated[int, Field(ge=1, le=1024, description="requests at a time")] = 8
    timeout_s: Annotated[float, Field(gt=0, le=86_400, description="of one try")] = 120.0
    patience_s: Annotated[
        float, Field(gt=0, le=2_592_000, description="how long a request is tried again")
    ] = 900.0

    def address(self) -> Endpoint:
        """How the server is reached. Raises: ParameterError: no such URL, or no readable key."""
        return Endpoint(
            url=self.endpoint,
            model=self.model,
            key=None if self.key_file is None else read_key(self.key_file),
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            patience_s=self.patience_s,
        )


def _kind_of_llm(value: object) -> str:
    return "reference" if isinstance(value, str) else "endpoint"


Llm: TypeAlias = Annotated[
    Annotated[str, Tag("reference")] | Annotated[EndpointSettings, Tag("endpoint")],
    Discriminator(_kind_of_llm),
]


class ServerSettings(PartySettings):
    """`server.toml`."""

    role: ClassVar[Role | None] = Role.COORDINATOR
    moved: ClassVar[Mapping[str, str]] = {"model.precision": "dtype in the table [model]"}

    listen: Annotated[Address, Field(description="host:port that sites and the auditor dial")]
    database: Annotated[
        str | None, Field(description="SQLAlchemy URL; default SQLite in state_dir")
    ] = None
    study: Annotated[Path, Field(description="study file to propose")]
    pool: Annotated[Path, Field(description="public pool, JSON Lines")]
    llm: Annotated[Llm, Field(description="model reference of the LLM, or a table of a server")]
    cache_dir: Annotated[Path, Field(description="model weights")]
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    model: ModelSettings = ModelSettings()
    monitor: Annotated[
        Address | None, Field(description="host:port of /healthz and /metrics; none by default")
    ] = None

    def beside(self, folder: Path) -> Self:
        """See `Settings`; the paths in `llm` as well."""
        found = super().beside(folder)
        if isinstance(found.llm, str):
            return found.model_copy(update={"llm": model_beside(found.llm, folder, key="llm")})
        return found.model_copy(update={"llm": found.llm.beside(folder)})

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
    approval_days: Annotated[
        float | None, Field(gt=0, le=3650, description="how long people at sites may decide")
    ] = None
    rounds: Annotated[int, Field(ge=1, le=1000)]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    slm: SlmPlan = SlmPlan()
    embedder: str
    seed: Seed = 0
    phase_timeout_s: Positive = 600.0
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

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.approval_days is not None and self.approval_days > self.valid_days:
            raise ValueError("approval_days is above valid_days: the plan would be over before it")
        if timedelta(days=self.valid_days) < timedelta(seconds=self.phase_timeout_s):
            raise ValueError(
                f"valid_days is {self.valid_days}, less than one phase may take (phase_timeout_s, "
                f"{self.phase_timeout_s:g} seconds): the plan would be over before a round"
            )
        return self

    @property
    def form(self) -> AnswerForm:
        """See `MethodPlan.form`."""
        return answer_form(self.answer_form, self.verifier.verifier())
