"""What a site's steps are computed with: model, public material, records, ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.data.records import PoolSample
from lada_secure.method.execution import Execution
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.embedding import Embedder
from lada_secure.models.evaluation import rationale_losses
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.release.private_records import PrivateRecords


@dataclass(slots=True, kw_only=True)
class SiteContext:
    """One site during one study.

    lm: with adapters, whose weights every step sets for itself. reference: those from before any
    training. pool_clusters: (n,) public cluster per pool sample. untaught: what the SLM made of the
    pool before any training, None until it is asked. taught: what the SLM with these adapters makes
    of it; see `lada_secure.method.site_knowledge`.
    """

    plan: MethodPlan
    lm: LanguageModel
    reference: AdapterWeights
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    embedder: Embedder
    pool_clusters: IntArray
    records: PrivateRecords
    book: LedgerBook
    execution: Execution
    untaught: SlmKnowledge | None = None
    taught: tuple[AdapterWeights, SlmKnowledge] | None = None

    @classmethod
    def open(
        cls,
        plan: MethodPlan,
        lm: LanguageModel,
        *,
        pool: tuple[PoolSample, ...],
        clusters: Clusters,
        embedder: Embedder,
        records: PrivateRecords,
        book: LedgerBook,
        execution: Execution,
    ) -> SiteContext:
        """Attach the plan's adapters, ask in its form, and place the pool among its clusters.

        Raises: ParameterError: the model has none of the plan's adapter targets.
        """
        attach_adapters(lm, adapter_settings(plan.distillation, lm, seed=plan.seed))
        return cls(
            plan=plan,
            lm=lm.with_form(plan.form),
            reference=adapter_weights(lm),
            pool=pool,
            clusters=clusters,
            embedder=embedder,
            pool_clusters=clusters.assign(embedder.embed([sample.question for sample in pool])),
            records=records,
            book=book,
            execution=execution,
        )

    def wear(self, state: SiteState) -> None:
        """Put the SLM's present adapters into the model."""
        load_adapters(self.lm, state.student or self.reference)

    def losses(self, examples: Sequence[RationaleExample]) -> FloatArray:
        """Loss of each rationale under the present adapters, nats per token, (m,)."""
        return rationale_losses(self.lm, examples, batch_size=self.execution.batch_size)

    def prompt(self, pool_index: int) -> str:
        """What a model reads of a pool sample."""
        sample = self.pool[pool_index]
        return self.lm.form.prompt(sample.question, sample.choices)

    def example(self, known: KnownRationale) -> RationaleExample:
        """A rationale as something to learn."""
        return RationaleExample(
            example_id=self.pool[known.pool_index].sample_id,
            prompt=self.prompt(known.pool_index),
            path=known.text,
            rejected=None,
        )
