"""The coordinator's uplink: whom to ask about what, and whether the LLM has learned from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lada_protocol.plan import TransferPlan
from lada_protocol.rounds.llm_transfer import (
    HoldoutScore,
    SiteRationale,
    holdout_agrees,
    split_pool,
    transfer_of,
)
from lada_secure.data.prompts import answer_of, prompt_of
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher

if TYPE_CHECKING:
    from lada_secure.models.confidence import Answers
    from lada_secure.models.examples import RationaleExample
    from lada_secure.models.tuning import TuningSettings

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
        """The plan's LLM transfer."""
        return transfer_of(self.study.plan)

    def samples_to_ask(self, opened: Sequence[int], *, version: str) -> list[int]:
        """Candidates on which the sites know more than the LLM of this version."""
        import numpy as np

        from lada_secure.allocation.confidence_excess import samples_to_ask

        candidates = split_pool(self.study.plan).candidates
        own = np.zeros(len(opened), dtype=np.float64)
        own[list(candidates)] = self._look(version, candidates).confidence
        return samples_to_ask(
            opened, own, candidates, threshold=self.settings.bar, budget=self.settings.budget
        )

    def improve(
        self,
        site_paths: Mapping[str, Sequence[SiteRationale]],
        written: Mapping[int, str],
        *,
        version: str,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> Decision:
        """Train the LLM of this version on the sites' paths, and decide by the hold-out.

        Where the hold-out does not agree, it is tried once more with smaller steps.
        Where the update is kept, its adapters are on disk before this returns; where it is not,
        the LLM is what it was.

        Args: site_paths: by site. written: the LLM's own checked paths by pool index, replayed so
            that they are not forgotten; those of held-out samples are left out.
        """
        from lada_secure.models.tuning import RATE_SHARES

        split = split_pool(self.study.plan)
        before = self._score(self._look(version, split.holdout))
        received = sum(len(paths) for paths in site_paths.values())
        examples = self._examples(site_paths, version)
        if not examples:
            return Decision(
                received=received,
                used=0,
                before=before,
                after=before,
                accepted=False,
                version=version,
            )
        held_out = set(split.holdout)
        replay = [
            self._example(sample, path, own=None)
            for sample, path in sorted(written.items())
            if sample not in held_out
        ]
        tuning = self._tuning(seed)
        for share in RATE_SHARES:
            gentle = replace(tuning, learning_rate=share * tuning.learning_rate)
            weights = self.teacher.tune(
                self.study, version, examples, replay, gentle, progress=progress
            )
            after = self._score(self.teacher.answer(self.study, split.holdout))
            accepted = holdout_agrees(before, after)
            if accepted:
                break
        if accepted:
            kept = self.teacher.keep(weights)
        else:
            kept = version
            self.teacher.use(self.study, version)
        LOG.info("update of the LLM %s: %s to %s", "kept" if accepted else "dropped", before, after)
        return Decision(
            received=received,
            used=len(examples),
            before=before,
            after=after,
            accepted=accepted,
            version=kept,
        )

    def _look(self, version: str, places: tuple[int, ...]) -> Answers:
        """The answers of the LLM of a version on pool samples, computed once."""
        key = (version, places)
        if key not in self._answers:
            self.teacher.use(self.study, version)
            self._answers[key] = self.teacher.answer(self.study, places)
        return self._answers[key]

    def _score(self, answers: Answers) -> HoldoutScore:
        from lada_secure.allocation.confidence_excess import scaled_confidence

        steps = scaled_confidence(answers.confidence, self.settings.integer_scale)
        return HoldoutScore(right=int(answers.right.sum()), confidence=int(steps.sum()))

    def _examples(
        self, site_paths: Mapping[str, Sequence[SiteRationale]], version: str
    ) -> list[RationaleExample]:
        """Different paths that reach the gold answer, each against what the LLM would say."""
        candidates = split_pool(self.study.plan).candidates
        said = self._look(version, candidates)
        own = {
            sample: path
            for sample, path, right in zip(candidates, said.paths, said.right, strict=True)
            if path and not right
        }
        pool = self.study.pool
        found: dict[tuple[int, str], RationaleExample] = {}
        for site in sorted(site_paths):
            for one in site_paths[site]:
                sample = pool[one.sample]
                if answer_of(one.path, sample.choices) == sample.answer:
                    found[one.sample, one.path] = self._example(
                        one.sample, one.path, own=own.get(one.sample)
                    )
        return [found[key] for key in sorted(found)]

    def _example(self, place: int, path: str, *, own: str | None) -> RationaleExample:
        from lada_secure.models.examples import RationaleExample

        sample = self.study.pool[place]
        return RationaleExample(
            example_id=sample.sample_id,
            prompt=prompt_of(sample.question, sample.choices),
            path=path,
            rejected=own,
        )

    def _tuning(self, seed: int) -> TuningSettings:
        from lada_secure.models.loss import LossSettings
        from lada_secure.models.tuning import TuningSettings

        uplink = self.settings
        return TuningSettings(
            steps=uplink.steps,
            batch_size=uplink.batch_size,
            replay_batch_size=uplink.replay_batch_size,
            learning_rate=uplink.learning_rate,
            seed=seed,
            loss=LossSettings(
                contrastive_form=uplink.contrastive_form,
                contrastive_weight=uplink.contrastive_weight,
            ),
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
