"""Why a party ends, as codes for the others: a closed list, and what each of them means.

A code is all that leaves. Sentences, paths, numbers and lines stay on the party's own screen and in
its log: what somebody writes there may depend on a record, and a code of this list may not. So each
cause is one that can be told without a look at a record; everything else is `untold`, and before a
site has accepted a plan it sends nothing at all then (SECURITY.md, "What a code can tell").
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class FailureCode(StrEnum):
    """Of `refusal` of a plan and of `failed`, by sites and the auditor.

    meaning: for whoever reads the code. mend: what can be done about it, and by whom.
    """

    meaning: str
    mend: str

    def __new__(cls, name: str, *words: str) -> FailureCode:
        code = str.__new__(cls, name)
        code._value_, (code.meaning, code.mend) = name, words
        return code

    POLICY = (
        "policy",
        "the plan has expired, or asks for more than its policy or settings allow",
        "propose again, or less, or ask its people what they allow",
    )
    OVER_BUDGET = (
        "over_budget",
        "the study would pass what is left of its privacy budget",
        "propose less epsilon, or go on without it",
    )
    REFUSED_BY_PERSON = (
        "refused_by_person",
        "a person there decided against the plan",
        "ask its people; what they gave as their reasons stays there",
    )
    UNDECIDED = (
        "undecided",
        "nobody there decided in time",
        "its people read the next plan with `lada site show`; give them longer to decide",
    )
    WITHDRAWN = (
        "withdrawn",
        "a person there withdrew it from the study",
        "ask its people; the others go on if they are enough",
    )
    MODEL = (
        "model",
        "its model, or the study's embedder, cannot be used there as the plan asks",
        "its operator looks with `lada check`",
    )
    MEMORY = (
        "memory",
        "its model needs more memory than it has, whatever its records are",
        "its operator takes a smaller model or batch, or the plan asks for shorter paths",
    )
    DOES_NOT_FIT = (
        "does_not_fit",
        "sizes of the plan, or texts of the public pool, do not fit its model and settings",
        "its operator looks with `lada check`; or shorten the pool's texts or the plan's paths",
    )
    MODEL_CHANGED = (
        "model_changed",
        "its model is not the one that it accepted the plan with",
        "its operator puts the model back and starts again",
    )
    DISK = (
        "disk",
        "its disk cannot be written: full, read-only, or without the right to",
        "its operator mends the disk and starts again",
    )
    LEDGER = (
        "ledger",
        "its ledger is damaged, ahead of its clock, or does not allow the next step",
        "its operator looks with `lada site ledger`, and starts again",
    )
    TRAINING = (
        "training",
        "its training ran into numbers that are not finite",
        "propose a lower learning rate in the next study",
    )
    BAD_MESSAGE = (
        "bad_message",
        "it has stopped at a message of another party that breaks the protocol",
        "its screen names the message; compare software versions, then look who sent it",
    )
    MISSED_ROUND = (
        "missed_round",
        "the others went through a round without it",
        "what it has spent stays spent; look why it was away",
    )
    LEDGER_NOT_SHOWN = (
        "ledger_not_shown",
        "it has spent more than the auditor has countersigned",
        "it shows its whole ledger when it accepts the next plan; do not lose it until then",
    )
    UNTOLD = (
        "untold",
        "it ended for a reason that it keeps to itself",
        "ask its operator; its screen and log say why",
    )


CODES: Final = frozenset(code.value for code in FailureCode)
# Of the refusal of a plan, or of a withdrawal from it; the others are of `failed` alone.
REFUSAL_CODES: Final = frozenset(
    code.value
    for code in (
        FailureCode.POLICY,
        FailureCode.OVER_BUDGET,
        FailureCode.REFUSED_BY_PERSON,
        FailureCode.UNDECIDED,
        FailureCode.WITHDRAWN,
    )
)


def meaning_of(code: str) -> str:
    """What a code means, in words; the code itself where this list does not have it."""
    return FailureCode(code).meaning if code in CODES else code
