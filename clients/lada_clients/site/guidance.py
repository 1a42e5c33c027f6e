"""A site's guide: which received paths agree with the private records.

The guide is what DP-SGD released. Judging and teaching with it are post-processing, on public texts
alone (`lada_secure.models.reference_model`, `lada_secure.allocation.agreement`). Private records
come in as what the next DP-SGD reads, and in no other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_clients.site.allocator import tried_clusters
from lada_clients.site.memory import JudgedRationale, SiteMemory
from lada_clients.site.received_paths import ReceivedRationale
from lada_protocol.plan import ReferenceModelPlan, StudyPlan
from lada_protocol.plan_mechanisms import valuation_parameters
from lada_secure.allocation.agreement import agreeing_rationales
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.data_valuation import (
    cluster_valuations,
    groups_to_value,
    useful_rationales,
)
from lada_secure.allocation.measured_valuation import measured_gains, valuation_student
from lada_secure.allocation.strategies import rationale_screen
from lada_secure.allocation.valuation_gains import release_gains, valuation_spec
from lada_secure.arrays import FloatArray
from lada_secure.data.prompts import prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.models.adapters import AdapterWeights, load_adapters
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.reference_model import (
    ContrastedRationale,
    lead_gains,
    sampled_responses,
    scaled_adapters,
)
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.release.private_records import PrivateRecords

# The number of steps is the plan's, however few paths there are.
_MANY_EPOCHS = 10**6


@dataclass(slots=True, kw_only=True)
class Guidance:
    """What one site's guide says. reference: the model's adapters before any training."""

    plan: StudyPlan
    settings: ReferenceModelPlan
    pool: tuple[PoolSample, ...]
    memory: SiteMemory
    model: LanguageModel
    reference: AdapterWeights
    batch_size: int
    grid: CellGrid

    def guide_before(self, round_id: int) -> AdapterWeights:
        """What a round's DP-SGD starts from: the newest guide, or the reference."""
        for earlier in reversed(range(round_id)):
            kept = self.memory.guide(earlier)
            if kept is not None:
                return AdapterWeights(data=kept)
        return self.reference

    def finishes(self, round_id: int) -> bool:
        """Whether this round's DP-SGD comes after its pool paths."""
        return self.settings.finish and round_id + 1 == self.plan.rounds

    def take(self, received: Sequence[ReceivedRationale]) -> list[JudgedRationale]:
        """All paths so far, new ones with own paths of the reference beside them and no gain yet.

        Leaves the reference in the model. Nothing is drawn for paths that memory holds.
        """
        known = {one.sample: one for one in self.memory.judged_paths()}
        new = [one for one in received if one.sample not in known]
        load_adapters(self.model, self.reference)
        drawn = (
            sampled_responses(
                self.model,
                [self._prompt(one.sample) for one in new],
                count=self.settings.own_paths,
                max_new_tokens=self.plan.paths.max_new_tokens,
                batch_size=self.batch_size,
                seed=self.plan.seed,
            )
            if new
            else []
        )
        for one, own in zip(new, drawn, strict=True):
            known[one.sample] = JudgedRationale(
                sample=one.sample, cell=one.cell, path=one.path, own_paths=list(own), gain=0.0
            )
        return [known[sample] for sample in sorted(known)]

    def judge(
        self, paths: Sequence[JudgedRationale], guide: AdapterWeights
    ) -> list[JudgedRationale]:
        """Measure all paths against a guide, in their order."""
        gains = lead_gains(
            self.model,
            [
                ContrastedRationale(
                    prompt=self._prompt(one.sample), path=one.path, own_paths=tuple(one.own_paths)
                )
                for one in paths
            ],
            reference=self.reference,
            guide=guide,
            batch_size=self.batch_size,
        )
        return [
            one.model_copy(update={"gain": float(gain)})
            for one, gain in zip(paths, gains, strict=True)
        ]

    def try_out(
        self,
        paths: Sequence[JudgedRationale],
        examples: Sequence[RationaleExample],
        records: PrivateRecords,
        *,
        book: LedgerBook,
        round_id: int,
    ) -> None:
        """Release what students of each cluster's paths make of the records, and remember it.

        Nothing happens, and nothing is paid, where the study has no valuations or no cluster has
        enough paths. Training the students reads no private record. After a crash the ledger gives
        out the same release.

        Args: paths: all so far; examples: the same as something to learn.
        """
        parameters = valuation_parameters(self.plan)
        groups = groups_to_value(self._clusters(paths), clusters=self.grid.clusters)
        if parameters is None or not groups:
            return
        tuning = self._tuning(
            self.settings.pool_steps,
            round_id=round_id,
            loss=LossSettings(contrastive_weight=0.0),
        )
        students = {
            cluster: valuation_student(
                self.model,
                [examples[at] for at in found],
                reference=self.reference,
                tuning=tuning,
            )
            for cluster, found in groups.items()
        }
        noised = release_gains(
            lambda paid: measured_gains(
                self.model,
                records.units(paid),
                students,
                reference=self.reference,
                parameters=parameters,
                batch_size=self.batch_size,
            ),
            parameters=parameters,
            book=book,
            spec=valuation_spec(
                parameters,
                study_id=self.plan.study_id,
                plan_hash=self.plan.hash,
                round_id=round_id,
                unit=self.plan.privacy.unit,
            ),
        ).value
        self.memory.keep_trials(
            round_id,
            cluster_valuations(noised, {cluster: len(found) for cluster, found in groups.items()}),
        )

    def _clusters(self, paths: Sequence[JudgedRationale]) -> list[int]:
        return [one.cell // self.grid.bins for one in paths]

    def passing(self, judged: Sequence[JudgedRationale], probabilities: FloatArray) -> list[int]:
        """Places of the paths to train on: inside the band of p, and agreeing with the records.

        By the guide, and where a path's cluster had a valuation by that.

        Args: probabilities: (n,) exp(-loss) under the student before this round.
        """
        allocation = self.plan.allocation
        good = rationale_screen(probabilities, allocation.screen_low, allocation.screen_high)
        agreeing = agreeing_rationales(
            [one.gain for one in judged],
            [one.cell for one in judged],
            cells=self.grid.cells,
            least_share=self.settings.least_share,
        )
        good &= useful_rationales(
            tried_clusters(self.plan, self.memory, self.grid),
            self._clusters(judged),
            agreeing,
            least_share=self.settings.least_share,
        )
        return [place for place, fine in enumerate(good) if fine]

    def start(self, guide: AdapterWeights) -> None:
        """Put into the model what a student starts from: a share of the guide's update."""
        load_adapters(self.model, scaled_adapters(guide, self.settings.private_share))

    def teach(
        self, examples: Sequence[RationaleExample], *, round_id: int, loss: LossSettings
    ) -> None:
        """Train the model as it is now on pool paths; nothing happens without any."""
        if not examples:
            return
        last = round_id + 1 == self.plan.rounds
        steps = self.settings.last_pool_steps if last else self.settings.pool_steps
        tune_on_rationales(
            self.model, examples, (), self._tuning(steps, round_id=round_id, loss=loss)
        )

    def _tuning(self, steps: int, *, round_id: int, loss: LossSettings) -> TuningSettings:
        return TuningSettings(
            steps=steps,
            batch_size=self.plan.distillation.pool_batch_size,
            replay_batch_size=0,
            learning_rate=self.settings.pool_learning_rate,
            max_epochs=_MANY_EPOCHS,
            seed=self.plan.seed + round_id,
            loss=loss,
        )

    def _prompt(self, place: int) -> str:
        sample = self.pool[place]
        return prompt_of(sample.question, sample.choices)
