"""LLM transfer (SPEC.md, section 8a): which samples, what is asked and answered, when it counts.

Pure checks. What a site's confidence excess is, `lada_secure.allocation.confidence_excess` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.envelope import StrictModel, read_document
from lada_protocol.wire.messages import InquiryBody, LlmUpdateBody, parse_body
from lada_secure.canonical import canonical_json
from lada_secure.errors import PeerError
from lada_secure.method.holdout import HoldoutScore, holdout_agrees
from lada_secure.method.plan import CONFIDENCE_EXCESS, split_pool, transfer_of

NO_ADAPTERS = "0" * 64
MAX_RATIONALE_CHARACTERS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRationale:
    """One path of a site's SLM; `sample` is a pool index."""

    sample: int
    path: str


def inquiry_bytes(samples: Sequence[int]) -> bytes:
    """The payload of `inquiry`."""
    return canonical_json(sorted(samples))


def parse_inquiry(
    raw: bytes, body: InquiryBody, *, plan: StudyPlan, opened: Sequence[int]
) -> tuple[int, ...]:
    """The pool indices that sites are asked about.

    Args: opened: the opened confidence excesses of the round.
    Raises: PeerError(reason="malformed"): not a sorted list of different indices, or not as many
        as the body says. PeerError(reason="bad_inquiry"): more than the budget, a sample that is
        no candidate, or one on which no site has a confidence excess.
    """
    limit = Kind.INQUIRY.rules.max_payload_bytes
    samples = read_document(raw, list[int], what="inquiry", max_bytes=limit)
    if samples != sorted(set(samples)):
        raise PeerError("inquiry: expected different pool indices, ascending")
    if len(samples) != body.samples:
        raise PeerError(f"inquiry: {len(samples)} samples, its body says {body.samples}")
    budget = transfer_of(plan).budget
    if len(samples) > budget:
        raise PeerError(
            f"inquiry: {len(samples)} samples, the plan allows {budget}", reason="bad_inquiry"
        )
    candidates = set(split_pool(plan).candidates)
    wrong = [sample for sample in samples if sample not in candidates or opened[sample] < 1]
    if wrong:
        raise PeerError(
            f"inquiry: sample {wrong[0]} is no candidate, or no site has an advantage on it",
            reason="bad_inquiry",
        )
    return tuple(samples)


class _Row(StrictModel):
    sample: int
    path: Annotated[str, Field(min_length=1, max_length=MAX_RATIONALE_CHARACTERS)]


def site_rationales_bytes(paths: Sequence[SiteRationale]) -> bytes:
    """The payload of `site_paths`."""
    return canonical_json([asdict(path) for path in sorted(paths, key=lambda path: path.sample)])


def parse_site_rationales(raw: bytes, *, asked: Sequence[int]) -> tuple[SiteRationale, ...]:
    """Read the payload of `site_paths`.

    Args: asked: the samples of the inquiry that it answers.
    Raises: PeerError(reason="malformed"): another form, a sample that was not asked about or
        comes twice, or a path that is empty or longer than 8,192 characters.
    """
    limit = Kind.SITE_PATHS.rules.max_payload_bytes
    rows = read_document(raw, list[_Row], what="site_paths", max_bytes=limit)
    samples = [row.sample for row in rows]
    if not set(samples) <= set(asked):
        raise PeerError("site_paths: a sample that was not asked about")
    if samples != sorted(set(samples)):
        raise PeerError("site_paths: samples out of order, or one twice")
    return tuple(SiteRationale(sample=row.sample, path=row.path) for row in rows)


def llm_version(index: MessageIndex, *, before_round: int) -> str:
    """The LLM that a round starts with: what the newest accepted update before it left."""
    for round_id in reversed(range(before_round)):
        update = index.find(Kind.LLM_UPDATE, sender=index.coordinator, round_id=round_id)
        if update is not None:
            return parse_body(update, LlmUpdateBody).llm_after
    return NO_ADAPTERS


def check_transfer(index: MessageIndex, *, round_id: int) -> None:
    """Check a round's inquiry and update, where there are any, against the plan and each other.

    Raises: PeerError(reason="bad_inquiry"): an inquiry without the opened sum that it rests on.
        PeerError(reason="wrong_update"): an update out of its place, without its inquiry, against
        the hold-out's rule, or that does not follow from the LLM before.
    """
    coordinator = index.coordinator
    inquiry = index.find(Kind.INQUIRY, sender=coordinator, round_id=round_id)
    update = index.find(Kind.LLM_UPDATE, sender=coordinator, round_id=round_id)
    uplink = index.plan.transfer_in(round_id)

    def fault(message: str, *, reason: str = "wrong_update") -> PeerError:
        message = f"round {round_id}: {message}"
        return PeerError(message, reason=reason, peer=coordinator, round_id=round_id)

    if uplink is None and (inquiry is not None or update is not None):
        raise fault("the plan has no uplink in this round")
    if inquiry is not None:
        opened = index.by_hash(parse_body(inquiry, InquiryBody).opened)
        place = opened and (opened.kind, opened.header.round_id, opened.header.purpose)
        if place != (Kind.OPENED, round_id, CONFIDENCE_EXCESS):
            names_none = "the inquiry names no opened advantages of this round"
            raise fault(names_none, reason="bad_inquiry")
    if update is None or uplink is None:
        return
    body = parse_body(update, LlmUpdateBody)
    before = HoldoutScore(right=body.right_before, confidence=body.certainty_before)
    after = HoldoutScore(right=body.right_after, confidence=body.certainty_after)
    known = llm_version(index, before_round=round_id)
    sizes = (
        body.holdout == uplink.holdout,
        body.used <= body.received,
        max(before.right, after.right) <= body.holdout,
        max(before.confidence, after.confidence) <= body.holdout * uplink.integer_scale,
        body.used > 0 or before == after,
    )
    checks = {
        "the update names another inquiry than the round's": (
            inquiry is not None and body.inquiry == inquiry.message_hash
        ),
        "the update starts from another LLM than the study uses": body.llm_before == known,
        "the update's figures contradict the plan or each other": all(sizes),
        "the update was decided against the hold-out's rule": (
            body.accepted == (body.used > 0 and holdout_agrees(before, after))
        ),
        "the LLM changes exactly where an update was accepted": (
            body.accepted == (body.llm_after != body.llm_before)
        ),
    }
    for message, holds in checks.items():
        if not holds:
            raise fault(message)
