"""Bodies of messages as frozen types: parsed once, never checked again inside.

SPEC.md, "Messages", lists every field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import Field, ValidationError, field_validator

from lada_protocol.failure_codes import CODES, REFUSAL_CODES, meaning_of
from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import Digest, Envelope, PartyId, StrictModel, first_fault
from lada_secure.errors import PeerError
from lada_secure.models.identity import ModelIdentity

ErrorCode = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
MAX_SENTENCE: Final = 1000
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE)]
Certificate = Annotated[str, Field(max_length=8192)]
Index = Annotated[int, Field(ge=0)]


BODIES: dict[Kind, type[Body]] = {}


class Body(StrictModel):
    """Base of all bodies; each says the body of which kinds it is."""

    def __init_subclass__(cls, *, kinds: Sequence[Kind], **settings: Any) -> None:
        super().__init_subclass__(**settings)
        BODIES.update(dict.fromkeys(kinds, cls))


class EmptyBody(Body, kinds=[Kind.POOL, Kind.CLUSTERS]):
    """For kinds whose payload says everything: pool, clusters."""


class CertifiedBody(Body, kinds=[Kind.PLAN]):
    """plan: the sender's signing certificate (PEM), so that exports prove who signed."""

    certificate: Certificate


class OpeningKeyBody(CertifiedBody, kinds=[Kind.OPENING_KEY]):
    """opening_key: the auditor's BFV public key for one purpose is the payload."""

    parameters_digest: Digest


class AcceptanceBody(CertifiedBody, kinds=[Kind.ACCEPTANCE]):
    """acceptance: the site's signature over the plan hash, and the ledger that it will pay from.

    ledger_id, head_index, head_hash: the population's ledger with the decision on this plan.
    new_ledger: whether nothing was ever reserved in it and nothing carried into it.
    slm: the model that this site takes part with, to the end of the study.
    """

    population: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    ledger_id: Digest
    head_index: Index
    head_hash: Digest
    new_ledger: bool
    slm: ModelIdentity


class AdmissionBody(Body, kinds=[Kind.ADMISSION]):
    """admission: the auditor has compared the ledger with its copy; the site may spend.

    acceptance: the message hash of what is admitted. known_entries: how many entries of this ledger
    the auditor had seen, in all studies; 0 where it had no copy.
    """

    acceptance: Digest
    known_entries: Index


class FaultBody(Body, kinds=[Kind.REFUSAL, Kind.OPENING_REFUSED, Kind.ABORT, Kind.FAILED]):
    """refusal, opening_refused, abort, failed: a stable code and a sentence for people.

    The sentence is empty where a site or the auditor ends or refuses a plan; see `check_told`.
    """

    code: ErrorCode
    message: Sentence


class CohortBody(Body, kinds=[Kind.COHORT]):
    """cohort: the sites of one attempt; at least the plan's min_cohort."""

    sites: Annotated[list[PartyId], Field(min_length=1)]


class MaskKeyBody(Body, kinds=[Kind.MASK_KEY]):
    """mask_key: a fresh X25519 public key, 32 bytes in hexadecimal."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("public_key")
    @classmethod
    def _key_is_usable(cls, value: str) -> str:
        # With a point of small order the "shared" secret is zero, whatever the other key is, so
        # any private key shows it (RFC 7748, section 6.1).
        probe = X25519PrivateKey.from_private_bytes(bytes(32))
        try:
            probe.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(value)))
        except ValueError:
            raise ValueError("a point of small order is no mask key") from None
        return value


class LedgerBody(Body, kinds=[Kind.LEDGER]):
    """ledger: entries first_index to head_index are the payload, as canonical JSON Lines."""

    first_index: Index
    head_index: Index
    head_hash: Digest


class ReceiptBody(Body, kinds=[Kind.RECEIPT]):
    """receipt: the auditor's countersignature over a ledger head; the chain ends there or later."""

    head_index: Index
    head_hash: Digest


class ContributionBody(Body, kinds=[Kind.CONTRIBUTION]):
    """contribution: the sealed vector is the payload.

    opening_key: message hash of the aggregate key that it is sealed under. BFV ciphertexts don't
    tell one key from another, so this is how a swapped key is found before anything is opened.
    rests_on: message hash of what the coordinator gave this site to compute the vector from. A
    coordinator that shows the auditor other scores than the site is found by it.
    """

    keys_digest: Digest
    opening_key: Digest
    paid_by: Digest
    parameters_digest: Digest
    rests_on: Digest


class SumBody(Body, kinds=[Kind.SUM]):
    """sum: message hashes of the contributions that were added, by site."""

    contributions: dict[PartyId, Digest]


class OpenedBody(Body, kinds=[Kind.OPENED]):
    """opened: the opened sum is the payload, as a canonical JSON list of integers."""

    contributions: dict[PartyId, Digest]
    sum_message: Digest
    largest: Index


class MatrixBody(Body, kinds=[Kind.MATRIX]):
    """matrix: the private feature matrix that the coordinator commits to is the payload."""

    parameters_digest: Digest


class QueryBody(Body, kinds=[Kind.QUERY]):
    """query: one CKKS ciphertext per cell is the payload."""

    cells: Annotated[int, Field(ge=1, le=100_000)]


class ScoresBody(Body, kinds=[Kind.SCORES]):
    """scores: one CKKS ciphertext per block of the pool is the payload.

    query, matrix: message hashes of what was multiplied.
    """

    matrix: Digest
    query: Digest
    pool_size: Annotated[int, Field(ge=1)]


class PathsBody(Body, kinds=[Kind.PATHS]):
    """paths: counts of what the LLM wrote; the paths themselves are the payload."""

    demanded: Index
    written: Index
    wrong: Index
    dropped: Index


class TrainedBody(Body, kinds=[Kind.TRAINED]):
    """trained: the ledger entry that paid for this round's DP-SGD."""

    paid_by: Digest


class InquiryBody(Body, kinds=[Kind.INQUIRY]):
    """inquiry: the samples that sites are asked about are the payload, 0 or more."""

    opened: Digest
    samples: Index


class SitePathsBody(Body, kinds=[Kind.SITE_PATHS]):
    """site_paths: what the site's released SLM writes on an inquiry's samples is the payload."""

    inquiry: Digest
    written: Index


class LlmUpdateBody(Body, kinds=[Kind.LLM_UPDATE]):
    """llm_update: what was tried, what the public hold-out said, and which LLM the study uses now.

    Confidences are sums over the hold-out in steps of 1 / integer_scale. An LLM is named by the
    SHA-256 of its adapters, 64 zeros for the one without any.
    """

    inquiry: Digest
    received: Index
    used: Index
    holdout: Annotated[int, Field(ge=1)]
    right_before: Index
    right_after: Index
    certainty_before: Index
    certainty_after: Index
    accepted: bool
    llm_before: Digest
    llm_after: Digest


class TranscriptBody(Body, kinds=[Kind.TRANSCRIPT]):
    """transcript: the list of all messages of the round is the payload."""

    messages: Index


class CloseBody(Body, kinds=[Kind.CLOSE]):
    """close: signature over the transcript of the round."""

    transcript_sha256: Digest


class FinishedBody(Body, kinds=[Kind.FINISHED]):
    """finished: the study is over."""

    rounds: Index


B = TypeVar("B", bound=Body)


def check_body(envelope: Envelope) -> None:
    """Check that the body has the fields of its kind.

    Raises: PeerError(reason="malformed") naming kind, sender and field.
    """
    parse_body(envelope, BODIES[envelope.kind])


def check_told(envelope: Envelope, *, auditor: str) -> None:
    """Check that a dialling party tells by a code alone why it ends, or refuses a plan.

    A text could say anything of a record, and a code of its own making as well. The auditor alone
    speaks to one site, about its ledger, and in words.

    Raises: PeerError(reason="malformed"): a sentence, a code that is not on the list, an addressee,
        or a refusal of a plan at a place of a round.
    """
    head = envelope.header
    if envelope.kind not in (Kind.FAILED, Kind.REFUSAL):
        return
    if envelope.kind is Kind.REFUSAL and head.to and head.sender == auditor:
        return
    body = parse_body(envelope, FaultBody)
    codes = CODES
    if envelope.kind is Kind.REFUSAL:
        codes = REFUSAL_CODES
        if (head.round_id, head.purpose, head.attempt) != (0, "", 0):
            raise envelope.fault(f"refusal of {head.sender}: a plan is refused at no place of it")
    if body.message or head.to or body.code not in codes:
        raise envelope.fault(
            f"{envelope.kind} of {head.sender}: expected a known code, no message and no addressee"
        )


def fault_of(envelope: Envelope) -> str:
    """What a refusal or failure says to people; never raises.

    Whoever refuses with a body that cannot be read has refused all the same.
    """
    try:
        body = parse_body(envelope, FaultBody)
        return body.message or meaning_of(body.code)
    except PeerError:
        return f"{envelope.header.sender} gave no reason that can be read"


def parse_body(envelope: Envelope, model: type[B]) -> B:
    """The body of a message in its type.

    Raises: PeerError(reason="malformed") naming kind, sender and field.
    """
    try:
        return model.model_validate(envelope.header.body)
    except ValidationError as error:
        where = f"body of {envelope.kind} of {envelope.header.sender}"
        raise envelope.fault(first_fault(error, where)) from error
