"""The site's SLM in one study: the method's steps, with a state that survives restarts.

Everything here stays on this machine. What may leave is `Released`; the service sends nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_clients.site.memory import SiteMemory
from lada_clients.site.public_material import parse_received_rationales
from lada_clients.site.settings import SiteSettings
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS, SiteRationale
from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.arrays import FloatArray
from lada_secure.data.records import PoolSample, Record
from lada_secure.method.mechanisms import cell_grid
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import site_choice
from lada_secure.method.site_round import (
    confidence_excess,
    pick,
    site_adapters,
    site_statistics,
    solved,
)
from lada_secure.method.site_state import ReceivedRationale, SiteState
from lada_secure.method.site_training import RoundReports, train
from lada_secure.method.training import written_tokens
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.embedding import embedder
from lada_secure.models.evaluation import accuracy
from lada_secure.models.loading import load_language_model
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit
from lada_secure.privacy.released import Released


@dataclass(slots=True, kw_only=True)
class SiteLearner:
    """One site's model during one study; `load` first. state: what `memory` holds."""

    plan: StudyPlan
    context: SiteContext
    memory: SiteMemory
    state: SiteState
    held_out: tuple[Record, ...]

    @classmethod
    def load(
        cls,
        plan: StudyPlan,
        settings: SiteSettings,
        public: tuple[tuple[PoolSample, ...], Clusters],
        units: Sequence[Unit],
        *,
        held_out: tuple[Record, ...],
        book: LedgerBook,
        memory: SiteMemory,
    ) -> SiteLearner:
        """Load the SLM, attach its adapters, and go on from the state that was kept last."""
        import torch

        torch.set_num_threads(settings.threads)
        pool, clusters = public
        state = memory.load()
        # There from the beginning: adapters without it are those of a state that was lost.
        memory.keep(state)
        context = SiteContext.open(
            plan,
            load_language_model(
                str(settings.slm_folder),
                cache_dir=settings.cache_dir,
                calling=settings.model.calling,
                placement=settings.model.placement,
            ),
            pool=pool,
            clusters=clusters,
            embedder=embedder(plan.embedder),
            records=PrivateRecords(units),
            book=book,
            execution=settings.execution,
        )
        return cls(plan=plan, context=context, memory=memory, state=state, held_out=held_out)

    def release_statistics(self, round_id: int) -> Released[NoisedStatistics]:
        """This round's noised statistics; paid for once, the same value at every call."""
        return site_statistics(self.context, self.state, round_id)

    def utilities(self, noised: NoisedStatistics) -> FloatArray:
        """The utility of every cell, (d,) in [-1, 1]."""
        return site_choice(self.context, self.state, noised).utilities

    def picks(self, round_id: int, noised: NoisedStatistics, scores: FloatArray) -> tuple[int, ...]:
        """Pool indices that this site asks for in a round; chosen once."""
        if round_id not in self.state.picks:
            self._keep(pick(self.context, self.state, round_id, noised, scores))
        return self.state.picks[round_id]

    def parse_paths(self, raw: bytes) -> tuple[ReceivedRationale, ...]:
        """See `parse_received_rationales`."""
        return parse_received_rationales(
            raw, pool=self.context.pool, cells=cell_grid(self.plan).cells
        )

    def train(
        self,
        round_id: int,
        noised: NoisedStatistics,
        received: Sequence[ReceivedRationale],
        reports: RoundReports,
        *,
        demanded: int | None = None,
    ) -> None:
        """Distil what was picked and the private records; see `site_training.train`."""
        done = train(
            self.context, self.state, round_id, noised, received, reports, demanded=demanded
        )
        self.memory.keep_allocation(round_id, done.cells, done.fallback)
        self._keep(done.state)

    def released_adapters(self, round_id: int) -> Released[AdapterWeights]:
        """This round's adapters, after training. Raises: LedgerError: it was not trained."""
        return site_adapters(self.context, self.state, round_id)

    def confidence_excess(self, round_id: int) -> tuple[int, ...]:
        """What this site's SLM knows better than the plan's bar; the same at every call."""
        if round_id not in self.state.excess:
            found = confidence_excess(self.context, self.state)
            self._keep(self.state.with_excess(round_id, [int(entry) for entry in found]))
        return self.state.excess[round_id]

    def solved(self, pool_indices: Sequence[int]) -> list[SiteRationale]:
        """Rationales of the SLM on pool samples, where they reach the gold answer."""
        return [
            SiteRationale(sample=index, path=text[:MAX_RATIONALE_CHARACTERS])
            for index, text in solved(self.context, self.state, pool_indices).items()
        ]

    def held_out_accuracy(self) -> float | None:
        """Share of right answers on the site's own held-out records; never leaves the site."""
        if not self.held_out:
            return None
        self.context.wear(self.state)
        return accuracy(
            self.context.lm,
            self.held_out,
            batch_size=self.context.execution.batch_size,
            max_new_tokens=written_tokens(self.plan),
        )

    def _keep(self, state: SiteState) -> None:
        self.memory.keep(state)
        self.state = state
