"""A site's settings file and its policy file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from lada_protocol.kinds import Role
from lada_protocol.party_files import (
    DiallingSettings,
    ModelSettings,
    model_beside,
    read_settings,
)
from lada_protocol.settings import Settings
from lada_secure.canonical import sha256_hex
from lada_secure.data.unit_ids import MissingLike, Spellings
from lada_secure.method.execution import Execution
from lada_secure.method.plan import LEDGER_TIME_STEP_S
from lada_secure.models.identity import SlmPlan


class SlmSettings(ModelSettings):
    """The table `[model]` of a site's settings: its SLM, how it is called, and where it lies.

    slm: a plain name is a folder in `cache_dir`, anything with a slash or a leading dot or tilde is
    a path. revision, licence: what the site says of it; both are signed with the acceptance.
    """

    slm: Annotated[str, Field(min_length=1, description="model folder, or its name in cache_dir")]
    revision: Annotated[str, Field(max_length=200)] = ""
    licence: Annotated[str, Field(max_length=200)] = ""

    def beside(self, folder: Path) -> Self:
        """See `Settings.beside`. Raises: ParameterError."""
        own = super().beside(folder)
        return own.model_copy(update={"slm": model_beside(own.slm, folder, key="slm")})


class SiteSettings(DiallingSettings):
    """`site.toml`."""

    role: ClassVar[Role | None] = Role.SITE
    moved: ClassVar[Mapping[str, str]] = {
        "device": "device in the table [model]",
        "precision": "dtype in the table [model]",
        "model.precision": "dtype in the table [model]",
    }

    policy: Annotated[Path, Field(description="policy file of this site")]
    records: Annotated[Path, Field(description="private records, JSON Lines")]
    held_out: Annotated[
        Path | None, Field(description="private test records; never trained on")
    ] = None
    cache_dir: Annotated[Path, Field(description="model weights")]
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    physical_batch_size: Annotated[int, Field(ge=1)] = 16
    model: SlmSettings

    @property
    def work(self) -> str:
        """What one process alone may do at a time: this site's part in one coordinator's study.

        Studies of several coordinators may run side by side. They share the state folder with its
        ledger, and each has a folder of its own in it; two processes for one coordinator would be
        one party twice.
        """
        return sha256_hex(self.coordinator.encode())[:16]

    @property
    def slm_folder(self) -> Path:
        """Where the SLM lies."""
        # A path that is absolute by now stays as it is.
        return self.cache_dir / self.model.slm

    @property
    def called(self) -> str:
        """How questions are put to the SLM, as far as these settings decide it."""
        return self.model.calling.sha256

    @property
    def execution(self) -> Execution:
        """How this machine computes."""
        return Execution(threads=self.threads, batch_size=self.physical_batch_size)


class UnitRules(BaseModel):
    """The table `[units]` of a policy: what the site has checked about its unit ids.

    spellings: of one id in canonical form; "one_person" protects them as one. missing_like: ids
    such as "nan" or "unknown"; "meant" says that they are people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spellings: Spellings = "refuse"
    missing_like: MissingLike = "refuse"


class RecordRules(BaseModel):
    """The table `[records]` of a policy. too_long: for the model; "cut" trains on what fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    too_long: Literal["refuse", "cut"] = "refuse"


class SitePolicy(Settings):
    """`policy.toml`: the most that any study may ask of this site.

    A plan that passes any bound is refused before a record is touched. counts_rounded_up_to: how
    coarsely `lada site show` tells of how many people a study would be; 1 for exactly.
    """

    roster_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    population: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    target_delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon_cap_per_study: Annotated[float, Field(gt=0)]
    epsilon_cap_total: Annotated[float, Field(gt=0)]
    min_cohort: Annotated[int, Field(ge=3)] = 3
    max_records_per_unit: Annotated[int, Field(ge=1)]
    min_ledger_time_step_s: Annotated[int, Field(ge=1, le=86_400)] = LEDGER_TIME_STEP_S
    pool_gradients: Annotated[tuple[Literal["public", "private"], ...], Field(min_length=1)] = (
        "public",
        "private",
    )
    approval: Literal["policy", "person"] = "policy"
    counts_rounded_up_to: Annotated[int, Field(ge=1, le=1000)] = 10
    units: UnitRules = UnitRules()
    records: RecordRules = RecordRules()
    model: SlmPlan = SlmPlan()


def read_site_settings(path: Path) -> tuple[SiteSettings, SitePolicy]:
    """The settings and policy files of a site; `check_files` reads the records they name.

    Raises: ParameterError: naming file, key, what was expected and what was found.
    """
    settings = read_settings(path, SiteSettings)
    return settings, read_settings(settings.policy, SitePolicy)
