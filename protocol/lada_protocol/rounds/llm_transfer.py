"""Uplink (DESIGN section 3, step 10): which samples, what is asked and answered, when it counts.

Pure checks. What a site's confidence excess is, `lada_secure.allocation.confidence_excess` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.plan import CONFIDENCE_EXCESS, StudyPlan, TransferPlan
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.messages import InquiryBody, LlmUpdateBody, parse_body
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LocalProtocolError, PeerError

NO_ADAPTERS = "0" * 64
MAX_RATIONALE_CHARACTERS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSplit:
    """Pool indices, ascending, that judge updates and that may be learned from; disjoint."""

    holdout: tuple[int, ...]
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRationale:
    """One path of a site's SLM; `sample` is a pool index."""

    sample: int
    path: str


def transfer_of(plan: StudyPlan) -> TransferPlan:
    """The plan's LLM transfer settings.

    Raises: LocalProtocolError: the plan has none; the caller asked too much.
    """
    if plan.uplink is None:
        raise LocalProtocolError(f"the plan of study {plan.study_id} has no uplink")
    return plan.uplink


def split_pool(plan: StudyPlan) -> PoolSplit:
    """Hold-out and candidates: a public function of the plan, the same at every party.

    Samples in the order of SHA-256("lada/1/uplink/" pool_sha256 "/" index): the first are held
    out, the next are candidates.
    """
    uplink = transfer_of(plan)

    def rank(index: int) -> str:
        text = f"lada/1/uplink/{plan.pool_sha256}/{index}"
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    order = sorted(range(plan.pool_size), key=rank)
    last = uplink.holdout + uplink.candidates
    return PoolSplit(
        holdout=tuple(sorted(order[: uplink.holdout])),
        candidates=tuple(sorted(order[uplink.holdout : last])),
    )


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
    value = parse_canonical_json(raw, max_bytes=kind_rules(Kind.INQUIRY).max_payload_bytes)
    if not isinstance(value, list):
        raise PeerError("inquiry: expected a list of pool indices", reason="malformed")
    samples = [one for one in value if type(one) is int]
    if len(samples) != len(value) or samples != sorted(set(samples)):
        raise PeerError("inquiry: expected different pool indices, ascending", reason="malformed")
    if len(samples) != body.samples:
        raise PeerError(
            f"inquiry: {len(samples)} samples, its body says {body.samples}", reason="malformed"
        )
    uplink = transfer_of(plan)
    if len(samples) > uplink.budget:
        raise PeerError(
            f"inquiry: {len(samples)} samples, the plan allows {uplink.budget}",
            reason="bad_inquiry",
        )
    candidates = set(split_pool(plan).candidates)
    wrong = [one for one in samples if one not in candidates or opened[one] < 1]
    if wrong:
        raise PeerError(
            f"inquiry: sample {wrong[0]} is no candidate, or no site has an advantage on it",
            reason="bad_inquiry",
        )
    return tuple(samples)


def site_rationales_bytes(paths: Sequence[SiteRationale]) -> bytes:
    """The payload of `site_paths`."""
    ordered = sorted(paths, key=lambda one: one.sample)
    return canonical_json([{"sample": one.sample, "path": one.path} for one in ordered])


def parse_site_rationales(raw: bytes, *, asked: Sequence[int]) -> tuple[SiteRationale, ...]:
    """Read the payload of `site_paths`.

    Args: asked: the samples of the inquiry that it answers.
    Raises: PeerError(reason="malformed"): another form, a sample that was not asked about or
        comes twice, or a path that is empty or longer than 8,192 characters.
    """
    value = parse_canonical_json(raw, max_bytes=kind_rules(Kind.SITE_PATHS).max_payload_bytes)
    if not isinstance(value, list):
        raise PeerError("site_paths: expected a list", reason="malformed")
    found: list[SiteRationale] = []
    for row in value:
        if not isinstance(row, dict) or set(row) != {"sample", "path"}:
            raise PeerError("site_paths: expected objects with sample and path", reason="malformed")
        sample, path = row["sample"], row["path"]
        if type(sample) is not int or sample not in asked:
            raise PeerError("site_paths: a sample that was not asked about", reason="malformed")
        if not isinstance(path, str) or not 0 < len(path) <= MAX_RATIONALE_CHARACTERS:
            raise PeerError(
                f"site_paths: expected texts of 1 to {MAX_RATIONALE_CHARACTERS} characters",
                reason="malformed",
            )
        found.append(SiteRationale(sample=sample, path=path))
    order = [one.sample for one in found]
    if order != sorted(set(order)):
        raise PeerError("site_paths: samples out of order, or one twice", reason="malformed")
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutScore:
    """How well an LLM does on the hold-out.

    right: samples answered rightly. confidence: sum over them of floor(integer_scale x confidence).
    """

    right: int
    confidence: int


def holdout_agrees(before: HoldoutScore, after: HoldoutScore) -> bool:
    """The one rule: surer of the right answers than before, and no fewer of them."""
    return after.right >= before.right and after.confidence > before.confidence


def llm_version(index: MessageIndex, *, coordinator: str, before_round: int) -> str:
    """The LLM that a round starts with: what the newest accepted update before it left."""
    for round_id in reversed(range(before_round)):
        update = index.find(Kind.LLM_UPDATE, sender=coordinator, round_id=round_id)
        if update is not None:
            return parse_body(update, LlmUpdateBody).llm_after
    return NO_ADAPTERS


def check_transfer(
    index: MessageIndex, *, plan: StudyPlan, coordinator: str, round_id: int
) -> None:
    """Check a round's inquiry and update, where there are any, against the plan and each other.

    Raises: PeerError(reason="bad_inquiry"): an inquiry without the opened sum that it rests on.
        PeerError(reason="wrong_update"): an update out of its place, without its inquiry, against
        the hold-out's rule, or that does not follow from the LLM before.
    """
    inquiry = index.find(Kind.INQUIRY, sender=coordinator, round_id=round_id)
    update = index.find(Kind.LLM_UPDATE, sender=coordinator, round_id=round_id)

    def fault(message: str, reason: str) -> PeerError:
        return PeerError(
            f"round {round_id}: {message}", reason=reason, peer=coordinator, round_id=round_id
        )

    uplink = plan.transfer_in(round_id)
    if uplink is None and (inquiry is not None or update is not None):
        raise fault("the plan has no uplink in this round", "wrong_update")
    if inquiry is not None:
        opened = index.by_hash(parse_body(inquiry, InquiryBody).opened)
        if opened is None or (opened.kind, opened.header.round_id, opened.header.purpose) != (
            Kind.OPENED,
            round_id,
            CONFIDENCE_EXCESS,
        ):
            raise fault("the inquiry names no opened advantages of this round", "bad_inquiry")
    if update is None or uplink is None:
        return
    body = parse_body(update, LlmUpdateBody)
    if inquiry is None or body.inquiry != inquiry.message_hash:
        raise fault("the update names another inquiry than the round's", "wrong_update")
    if body.llm_before != llm_version(index, coordinator=coordinator, before_round=round_id):
        raise fault("the update starts from another LLM than the study uses", "wrong_update")
    before = HoldoutScore(right=body.right_before, confidence=body.certainty_before)
    after = HoldoutScore(right=body.right_after, confidence=body.certainty_after)
    sizes = (
        body.holdout == uplink.holdout,
        body.used <= body.received,
        max(before.right, after.right) <= body.holdout,
        max(before.confidence, after.confidence) <= body.holdout * uplink.integer_scale,
        body.used > 0 or before == after,
    )
    if not all(sizes):
        raise fault("the update's figures contradict the plan or each other", "wrong_update")
    if body.accepted != (body.used > 0 and holdout_agrees(before, after)):
        raise fault("the update was decided against the hold-out's rule", "wrong_update")
    if body.accepted == (body.llm_after == body.llm_before):
        raise fault("the LLM changes exactly where an update was accepted", "wrong_update")
