"""The coordinator's SLM-to-LLM transfer: the method's decision, made durable and told to all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lada_protocol.rounds.llm_transfer import SiteRationale
from lada_secure.method.holdout import HoldoutScore
from lada_secure.method.llm_transfer import improve, samples_to_inquire
from lada_secure.method.plan import TransferPlan, split_pool, transfer_of
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.confidence import Answers
from lada_secure.models.examples import RationaleExample
from lada_secure.models.tuning import TuningSettings
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What came of an update; `version` is the LLM that the study uses from now on."""

    received: int
    used: int
    before: HoldoutScore
    after: HoldoutScore
    accepted: bool
    version: str


@dataclass(slots=True, kw_only=True)
class CoordinatorTransfer:
    """Step 10 at the coordinator. The LLM's own answers stay with it."""

    study: Study
    teacher: Teacher
    _answers: dict[tuple[str, tuple[int, ...]], Answers] = field(default_factory=dict)

    @property
    def settings(self) -> TransferPlan:
        """The plan's settings of the transfer."""
        return transfer_of(self.study.plan)

    def samples_to_ask(self, opened: Sequence[int], *, version: str) -> list[int]:
        """Candidates on which the sites know more than the LLM of this version."""
        candidates = split_pool(self.study.plan).candidates
        return samples_to_inquire(self.study.plan, opened, self.answers(version, candidates))

    def improve(
        self,
        site_paths: Mapping[str, Sequence[SiteRationale]],
        written: Mapping[int, str],
        *,
        version: str,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> Decision:
        """Train the LLM of this version on the sites' rationales, and decide by the hold-out.

        Where the update is kept, its adapters are on disk before this returns; where it is not,
        the LLM is what it was.

        Args: site_paths: by site. written: the LLM's own checked rationales by pool index.
        """
        llm = _TunableVersion(self, version, progress)
        received = {
            site: {one.sample: one.path for one in paths} for site, paths in site_paths.items()
        }
        found = improve(llm, self.study.plan, self.study.pool, received, written, seed=seed)
        accepted = found.weights is not None
        if found.weights is not None:
            kept = self.teacher.keep(found.weights)
        else:
            kept = version
            self.teacher.use(self.study, version)
        LOG.info(
            "update of the LLM %s: %s to %s",
            "kept" if accepted else "dropped",
            found.before,
            found.after,
        )
        return Decision(
            received=found.received,
            used=found.used,
            before=found.before,
            after=found.after,
            accepted=accepted,
            version=kept,
        )

    def answers(self, version: str, pool_indices: Sequence[int]) -> Answers:
        """The answers of the LLM of a version on pool samples, computed once."""
        key = (version, tuple(pool_indices))
        if key not in self._answers:
            self.teacher.use(self.study, version)
            self._answers[key] = self.teacher.answer(self.study, pool_indices)
        return self._answers[key]


@dataclass(frozen=True, slots=True)
class _TunableVersion:
    """A version of the LLM as `improve` wants it."""

    transfer: CoordinatorTransfer
    version: str
    progress: Callable[[int, int], None]

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        return self.transfer.answers(self.version, pool_indices)

    def answer_tuned(self, pool_indices: Sequence[int]) -> Answers:
        return self.transfer.teacher.answer(self.transfer.study, pool_indices)

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> AdapterWeights:
        return self.transfer.teacher.tune(
            self.transfer.study, self.version, examples, replay, settings, progress=self.progress
        )


def update_body(decision: Decision, *, inquiry: str, holdout: int, before: str) -> dict[str, Any]:
    """The body of `llm_update`. Args: inquiry: its message hash. before: the LLM so far."""
    return {
        "inquiry": inquiry,
        "received": decision.received,
        "used": decision.used,
        "holdout": holdout,
        "right_before": decision.before.right,
        "right_after": decision.after.right,
        "certainty_before": decision.before.confidence,
        "certainty_after": decision.after.confidence,
        "accepted": decision.accepted,
        "llm_before": before,
        "llm_after": decision.version,
    }
