"""The form of a privacy report: what `privacy-report.json` holds, field by field.

docs/audit-a-run.md names every field. Fields are added without notice; where one goes or changes
its meaning, `schema_version` rises.
"""

from __future__ import annotations

from typing import Final, Literal

from lada_clients.reports.ledger_history import DocumentPart, KeyRenewal, Restart

# 2: a release has a salted commitment in place of hash and size of its output, and no time of it.
SCHEMA_VERSION: Final = 2


class StudyTerms(DocumentPart):
    """What was agreed, from the plan that every site signed."""

    study_id: str
    title: str
    coordinator: str
    expires: str
    rounds: int
    rounds_closed: int
    unit: str
    adjacency: str
    max_records_per_unit: int
    target_delta: float
    epsilon_cap: float
    min_cohort: int
    pool_gradients: str
    plan_sha256: str
    roster_sha256: str
    pool_sha256: str
    pool_size: int
    embedder: str


class Release(DocumentPart):
    """One reservation of the ledger: privacy spent, whether or not anything left afterwards.

    `index` is its entry in the ledger. Times are UTC. `cost` is `epsilon_after` less
    `epsilon_before`, over all studies, at `target_delta`. `noise_multiplier` is noise std over
    sensitivity. `sampling_probability` and `steps` are null where nobody was sampled.
    `resumes` counts how often it was used again after a failure, at no cost. `output_commitment`
    is null where no output was stored (a crash, or work in progress); it counts as spent all the
    same.
    """

    index: int
    study_id: str
    round: int
    purpose: str
    chunk: int
    attempt: int
    time: str
    mechanism: str
    noise: str
    noise_multiplier: float
    sampling_probability: float | None
    steps: int | None
    parameters: dict[str, float | str]
    unit: str
    adjacency: str
    target_delta: float
    epsilon_before: float
    epsilon_after: float
    cost: float
    study_epsilon_before: float
    study_epsilon_after: float
    epsilon_rdp_after: float
    total_cap: float
    study_cap: float
    resumes: int
    output_commitment: str | None


class PurposeSpending(DocumentPart):
    """All releases of one purpose in one study.

    `cost`: by how much they raised epsilon over all studies, at the times when they were made.
    `epsilon_alone`: what they would cost if nothing else were released.
    """

    purpose: str
    releases: int
    uncommitted: int
    first: str
    last: str
    cost: float
    epsilon_alone: float


class StudySpending(DocumentPart):
    """One study at one site. `decision` is the latest; `left` is cap less epsilon, never below 0.

    Caps, epsilon and delta are null where nothing was reserved.
    """

    study_id: str
    decision: str
    expires: str
    target_delta: float | None
    epsilon: float | None
    cap: float | None
    left: float | None
    purposes: tuple[PurposeSpending, ...]


class DecisionTaken(DocumentPart):
    """The site approved, refused or withdrew. `statement` is what was decided about."""

    index: int
    time: str
    study_id: str
    decision: str
    decided_by: str
    expires: str
    statement: str


class Slm(DocumentPart):
    """The model that a site took part with, as it signed for it with its acceptance.

    `licence` and `revision` are what the site says of it. Hashes are SHA-256 of its weights with
    their configuration, of its tokenizer, and of how questions are put to it.
    """

    architecture: str
    parameters: int
    licence: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str


class SiteReport(DocumentPart):
    """One site's ledger. `verified` is false where it has a fault; then it may hold no figures.

    `started` is the time of its first entry. `new_to_auditor` says that the auditor had seen
    nothing of it before this study: whatever its people were in before is not counted. `resumes`
    counts payments that were used again after a failure, at no cost. `history` is this in words.
    `slm` is null where the site was not admitted.
    """

    site: str
    slm: Slm | None = None
    population: str = ""
    verified: bool = False
    ledger_id: str = ""
    started: str = ""
    new_to_auditor: bool = False
    restart: Restart | None = None
    key_renewals: tuple[KeyRenewal, ...] = ()
    resumes: int = 0
    history: tuple[str, ...] = ()
    entries: int = 0
    head_sha256: str = ""
    target_delta: float | None = None
    epsilon: float | None = None
    epsilon_rdp: float | None = None
    total_cap: float | None = None
    left: float | None = None
    studies: tuple[StudySpending, ...] = ()
    decisions: tuple[DecisionTaken, ...] = ()
    releases: tuple[Release, ...] = ()


class OpenedSum(DocumentPart):
    """One sum that was opened: over how many sites, and how many numbers it holds."""

    round: int
    purpose: str
    attempt: int
    cohort: int
    sites: tuple[str, ...]
    values: int


class PrivacyReport(DocumentPart):
    """`privacy-report.json`. `study` is null where the export could not be read."""

    schema_version: Literal[2] = SCHEMA_VERSION
    good: bool
    faults: tuple[str, ...]
    study: StudyTerms | None
    sites: tuple[SiteReport, ...]
    openings: tuple[OpenedSum, ...]
