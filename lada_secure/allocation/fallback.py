"""What a site does where its own choice of samples, or the pool itself, is not worth following.

What leads to it: `lada_secure.allocation.fallback_causes`. This is light to import, for readers of
events and of a site's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Action: TypeAlias = Literal["any_topic", "no_pool"]
Cause: TypeAlias = Literal[
    "one_topic", "few_records", "llm_mostly_wrong", "llm_weaker", "known_already"
]

INSTEAD: Final[dict[Action, str]] = {
    "any_topic": "topics decide nothing, and any sample that the LLM solves may be asked for",
    "no_pool": "this round is trained on the records alone, without the pool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A fallback in one round. because: the reason in plain words, with its figures."""

    action: Action
    cause: Cause
    because: str

    @property
    def sentence(self) -> str:
        """Reason and consequence."""
        return f"{self.because}; {INSTEAD[self.action]}"
