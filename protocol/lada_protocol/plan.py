"""The study plan: everything that a site agrees to, in one signed and hashed value.

A site's policy bounds every field of it; nothing in a round may exceed the plan.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lada_protocol.wire.envelope import Digest, PartyId, StudyId, read_document
from lada_secure.encryption.parameters import MAX_CELLS, MAX_LENGTH
from lada_secure.errors import PeerError
from lada_secure.method.plan import MethodPlan, Positive
from lada_secure.models.identity import SlmPlan

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")

MAX_PLAN_BYTES = 64 * 1024

# Of a committed matrix (SPEC.md, "Blind scoring"): 2048 samples a block, 8 KiB a column, 256 MiB
# less a header in all.
MATRIX_BLOCK = 2048
MAX_MATRIX_COLUMNS = 32_767


class StudyPlan(MethodPlan):
    """A whole study. Times are ISO 8601 in UTC with a trailing Z.

    A plan without `uplink` or `guide` has none; the field is left out of its bytes, never null.
    approve_by: until when people at the sites may decide about the plan; None, and left out of the
    bytes, for as long as the coordinator waits for anybody, `phase_timeout_s`.
    """

    version: Literal[2] = 2
    study_id: StudyId
    title: Annotated[str, Field(max_length=200)]
    coordinator: PartyId
    expires: str
    approve_by: str | None = None
    min_cohort: Annotated[int, Field(ge=3)]
    max_cohort: Annotated[int, Field(ge=3, le=1000)]
    slm: SlmPlan
    pool_sha256: Digest
    clusters_sha256: Digest
    phase_timeout_s: Positive

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        expires = parse_time(self.expires)
        if self.approve_by is not None and parse_time(self.approve_by) > expires:
            raise ValueError(f"approve_by {self.approve_by} is after expires {self.expires}")
        if self.max_cohort < self.min_cohort:
            raise ValueError("max_cohort is below min_cohort")
        blocks = -(-self.pool_size // MATRIX_BLOCK)
        if self.allocation.cells > MAX_CELLS or self.pool_size > MAX_LENGTH:
            raise ValueError(
                f"{self.allocation.cells} cells over {self.pool_size} samples, at most "
                f"{MAX_CELLS} over {MAX_LENGTH}"
            )
        if blocks * self.allocation.cells > MAX_MATRIX_COLUMNS:
            raise ValueError(
                f"{self.allocation.cells} cells in {blocks} blocks of {MATRIX_BLOCK} samples are "
                f"more than the {MAX_MATRIX_COLUMNS} columns that a matrix may have; take fewer "
                "clusters or a smaller pool"
            )
        return self


def parse_plan(raw: bytes) -> StudyPlan:
    """Read a plan that came from the coordinator.

    Raises: PeerError(reason="bad_plan") naming the field.
    """
    plan = read_document(raw, StudyPlan, what="plan", max_bytes=MAX_PLAN_BYTES, reason="bad_plan")
    if plan.to_bytes() != raw:
        raise PeerError("plan: fields do not read back to the same bytes", reason="bad_plan")
    return plan


def parse_time(text: str) -> datetime:
    """An ISO 8601 time in UTC, as `2026-01-31T12:00:00Z`.

    Raises: ValueError: any other spelling.
    """
    if _TIME.fullmatch(text) is None:
        raise ValueError(f"expected the form 2026-01-31T12:00:00Z, got {text[:40]!r}")
    return datetime.fromisoformat(text)


def format_time(moment: datetime) -> str:
    """The spelling that `parse_time` reads; fractions of a second are dropped."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
