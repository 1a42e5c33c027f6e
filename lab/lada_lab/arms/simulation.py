"""One arm in one world: a whole study in one process, measured on held-out records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lada_lab.arms.arms import POOL_SHARES, Arm
from lada_lab.arms.baseline_rounds import BaselineRounds
from lada_lab.arms.ledgers import ArmLedger, SharedReleases
from lada_lab.arms.llm import LabLlm
from lada_lab.arms.paper_filter import PaperTransfer
from lada_lab.arms.rivals import open_rule
from lada_lab.arms.rounds import SimulatedSite, SimulatedStudy
from lada_lab.arms.study import LabSettings, study_plan
from lada_lab.worlds.bench_models import LLM_PRETRAINING, SLM_PRETRAINING, bench_model
from lada_lab.worlds.chain_world import build_data
from lada_lab.worlds.natural import NaturalSettings
from lada_lab.worlds.natural_models import natural_data, natural_models
from lada_lab.worlds.study_data import BenchData, check_pool
from lada_secure.allocation.cells import Clusters, fit_clusters
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.arrays import Float32Array
from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError
from lada_secure.method.execution import Execution
from lada_secure.method.mechanisms import reads_slm
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import untaught_knowledge
from lada_secure.method.site_state import SiteState
from lada_secure.models.embedding import Embedder, embedder
from lada_secure.models.evaluation import accuracy
from lada_secure.models.loading import LanguageModel, load_folder
from lada_secure.models.placement import Placement
from lada_secure.models.rationale_scoring import frozen_outputs_shared
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit, bound_units

# Room for outputs of the SLM's frozen layers, all sites together.
_FROZEN_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm in one world.

    accuracy: mean over sites of their students, by_site: each. llm_before, llm_accuracy: of the LLM
    on the sites' held-out records that are in the public's manner, before and after the study.
    epsilon: the study's; spent: what the ledgers say, the largest, infinite for an arm that is not
    private. details: per site, one report a
    round. transfers: one report a round of SLM-to-LLM transfer. cpu_s: of this arm, less what
    another arm had computed before it; alone_s: with that, so whatever the order of arms.
    """

    condition: str
    epsilon: float
    seed: int
    accuracy: float
    by_site: tuple[float, ...]
    llm_before: float
    llm_accuracy: float
    spent: float
    cpu_s: float
    alone_s: float
    details: dict[str, list[dict[str, int]]]
    transfers: tuple[dict[str, int | bool], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorld:
    """Data and model folders of one seed."""

    data: BenchData
    slm: Path
    llm: Path
    seed: int


def prepare(settings: LabSettings, *, seed: int, cache_dir: Path) -> PreparedWorld:
    """Build the data, and train the two models where the cache does not have them."""
    world = settings.world
    if isinstance(world, NaturalSettings):
        models = natural_models(world, seed=seed, cache_dir=cache_dir)
        data = natural_data(world, seed=seed)
        return PreparedWorld(data=data, slm=models.slm, llm=models.llm, seed=seed)
    return PreparedWorld(
        data=build_data(world, seed=seed),
        slm=bench_model(world, SLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        llm=bench_model(world, LLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        seed=seed,
    )


@dataclass(slots=True, kw_only=True)
class Laboratory:
    """One world with everything that its arms share."""

    prepared: PreparedWorld
    settings: LabSettings
    embedder: Embedder
    embeddings: Float32Array
    clusters: Clusters
    units: tuple[tuple[Unit, ...], ...]
    _models: dict[bytes, SiteContext] = field(default_factory=dict)
    _shared: dict[str, SharedReleases] = field(default_factory=dict)
    _untaught: dict[bytes, tuple[SlmKnowledge, float]] = field(default_factory=dict)
    _llm: LabLlm | None = None
    _llm_s: float = 0.0

    @classmethod
    def open(cls, prepared: PreparedWorld, settings: LabSettings) -> Laboratory:
        """Cluster the pool and bound the records.

        Raises: ParameterError: a pool that `check_pool` refuses, or a site without records.
        """
        torch.set_num_threads(1)
        plan, data = settings.plan, prepared.data
        check_pool(data.pool)
        for site in data.sites:
            if not site.train:
                raise ParameterError(f"{site.name}: expected at least one record, got none")
        texts = embedder(plan.embedder)
        embeddings = texts.embed([sample.question for sample in data.pool])
        return cls(
            prepared=prepared,
            settings=settings,
            embedder=texts,
            embeddings=embeddings,
            clusters=fit_clusters(embeddings, plan.allocation.clusters, prepared.seed),
            units=tuple(
                bound_units(site.train, max_records_per_unit=plan.privacy.max_records_per_unit)
                for site in data.sites
            ),
        )

    @property
    def releases(self) -> Mapping[str, SharedReleases]:
        """By site, what this draw's arms share so far."""
        return self._shared

    def redrawn(self, releases: Mapping[str, SharedReleases] | None = None) -> Laboratory:
        """The same world for another draw of noise, or for one that goes on from its releases."""
        return replace(self, _shared=dict(releases or {}))

    def simulate(
        self, arm: Arm, *, epsilon: float, progress: Callable[[str], None] | None = None
    ) -> Outcome:
        """Run all rounds of one arm and measure it on held-out records."""
        started = time.process_time()
        plan = self.plan_of(arm, epsilon)
        study = self.study(arm, plan)
        llm_before = study.llm.accuracy()
        transfers: list[dict[str, int | bool]] = []
        # All sites' SLMs are one model. Not beyond an arm: `alone_s` is not to depend on others.
        slm = study.sites[0].context.lm.model
        with frozen_outputs_shared(slm, cache_bytes=_FROZEN_BYTES):
            for round_id in range(plan.rounds):
                done = study.run_round(round_id)
                if done.transfer is not None:
                    transfers.append(done.transfer.report())
                if progress is not None:
                    progress(f"seed {self.prepared.seed}, {arm.name}: round {round_id + 1} done")
            by_site = tuple(self._accuracy(site, number) for number, site in enumerate(study.sites))
        cpu_s = time.process_time() - started
        spared_s = study.llm.spared_s + study.spared_s
        spared_s += sum(site.ledger.spared_s for site in study.sites)
        return Outcome(
            condition=arm.name,
            epsilon=epsilon,
            seed=self.prepared.seed,
            accuracy=sum(by_site) / len(by_site),
            by_site=by_site,
            llm_before=llm_before,
            llm_accuracy=study.llm.accuracy(),
            spent=_spent(study),
            cpu_s=cpu_s,
            alone_s=cpu_s + spared_s,
            details={site.name: site.reports for site in study.sites},
            transfers=tuple(transfers),
        )

    def study(self, arm: Arm, plan: MethodPlan) -> SimulatedStudy:
        """One arm's study under a plan, before its first round."""
        llm, sites = self._llm_for(arm, plan), self._sites(plan)
        spared_s = 0.0
        chooses = plan.allocation.fallback != "off" or reads_slm(plan)
        repeats = plan.guide is not None and plan.guide.replay_batch_size is not None
        if repeats or (arm.asks == "method" and chooses):
            spared_s = self._ask_untaught([site.context for site in sites])
        units = {site.name: own for site, own in zip(sites, self.units, strict=True)}
        baseline = None
        if arm.baseline is not None:
            baseline = BaselineRounds.open(arm.baseline, llm, [site.context for site in sites])
        papers_own = arm.asks == "paper" and plan.uplink is not None
        return SimulatedStudy(
            arm=arm,
            plan=plan,
            llm=llm,
            sites=tuple(sites),
            baseline=baseline,
            rule=open_rule(arm.asks, llm, units),
            inquiries=PaperTransfer(llm=llm) if papers_own else None,
            spared_s=spared_s,
        )

    def plan_of(self, arm: Arm, epsilon: float) -> MethodPlan:
        """The plan of an arm at an epsilon; see `study_plan`."""
        data, settings = self.prepared.data, self.settings
        tuned = {**arm.defaults, **settings.tuned.get(arm.name, {})}
        tuned = {name: value for name, value in tuned.items() if name not in settings.chosen}
        noise_rate = tuned.pop("noise_rate", settings.noise_rate)
        if not isinstance(noise_rate, float):
            raise ParameterError(f"{arm.name}: noise_rate: expected a number, got {noise_rate!r}")
        changes: dict[str, Json] = {**tuned, **arm.changes}
        if arm.asks == "all":
            changes |= {"paths.budget": len(data.pool), "allocation.quota": len(data.pool)}
        if isinstance(transfer := changes.get("uplink"), dict):
            # Students know what their records say when they have ended on them; the paper's rule
            # has to see rewards first.
            first = 0 if arm.asks == "paper" else settings.plan.rounds - 1
            sizes = {name: round(share * len(data.pool)) for name, share in POOL_SHARES.items()}
            changes["uplink"] = {**transfer, **sizes, "first_round": first}
        return study_plan(
            replace(settings, noise_rate=noise_rate),
            changes,
            data,
            clusters=self.clusters.count,
            units=round(sum(len(units) for units in self.units) / len(self.units)),
            epsilon=epsilon,
            seed=self.prepared.seed,
        )

    def _llm_for(self, arm: Arm, plan: MethodPlan) -> LabLlm:
        """The LLM; one that learns serves its own study alone."""
        learns = arm.baseline is not None or plan.uplink is not None
        if not learns and self._llm is not None and self._llm.lm.form == plan.form:
            return replace(self._llm, plan=plan, spared_s=self._llm_s)
        started = time.process_time()
        llm = LabLlm.open(
            plan,
            self._loaded(self.prepared.llm, name="bench-llm"),
            self.prepared.data,
            self.clusters,
            self.embeddings,
            learns=learns,
        )
        if not learns:
            # Every arm needs both, so that they are timed apart from what the first arm does.
            _ = llm.view, llm.accuracy()
            self._llm, self._llm_s = llm, time.process_time() - started
        return llm

    def _sites(self, plan: MethodPlan) -> list[SimulatedSite]:
        found = []
        for data, units in zip(self.prepared.data.sites, self.units, strict=True):
            shared = self._shared.setdefault(data.name, SharedReleases())
            ledger = ArmLedger(plan, site=data.name, shared=shared, group=_group(plan))
            opened = self._context(plan)
            context = replace(
                opened,
                plan=plan,
                lm=opened.lm.with_form(plan.form),
                records=PrivateRecords(units),
                book=ledger,
                execution=Execution(threads=1, batch_size=self.settings.batch_size),
            )
            found.append(
                SimulatedSite(name=data.name, context=context, state=SiteState(), ledger=ledger)
            )
        return found

    def _context(self, plan: MethodPlan) -> SiteContext:
        """One SLM for all sites and arms with the same adapters: every step sets its weights."""
        shape = canonical_json([plan.distillation.model_dump(mode="json"), plan.seed])
        if shape not in self._models:
            self._models[shape] = SiteContext.open(
                plan,
                self._loaded(self.prepared.slm, name="bench-slm"),
                pool=self.prepared.data.pool,
                clusters=self.clusters,
                embedder=self.embedder,
                records=PrivateRecords(()),
                book=ArmLedger(plan, site="nobody", shared=SharedReleases(), group=""),
                execution=Execution(),
            )
        return self._models[shape]

    def _loaded(self, folder: Path, *, name: str) -> LanguageModel:
        return load_folder(folder, name=name, placement=Placement(dtype=self.settings.dtype))

    def _ask_untaught(self, sites: Sequence[SiteContext]) -> float:
        """Let the one SLM answer the pool for all sites, and for all arms that ask it alike.

        Returns: seconds that an earlier arm has spent on it.
        """
        plan = sites[0].plan
        asked = canonical_json(
            [plan.answer_form, plan.verifier.model_dump(mode="json"), plan.paths.max_new_tokens]
        )
        found = self._untaught.get(asked)
        if found is None:
            started = time.process_time()
            answers = untaught_knowledge(sites[0])
            self._untaught[asked] = (answers, time.process_time() - started)
        else:
            answers = found[0]
        for site in sites:
            site.untaught = answers
        return 0.0 if found is None else found[1]

    def _accuracy(self, site: SimulatedSite, number: int) -> float:
        """Share of right answers of the student on the site's held-out records."""
        site.context.wear(site.state)
        return accuracy(
            site.context.lm,
            self.prepared.data.sites[number].held_out,
            batch_size=self.settings.batch_size,
            max_new_tokens=site.context.plan.paths.max_new_tokens,
        )


def _spent(study: SimulatedStudy) -> float:
    """The largest epsilon in any ledger; without bound where records were read beside them."""
    if not study.arm.private:
        return math.inf
    delta = study.plan.privacy.target_delta
    return max(site.ledger.epsilon_spent(delta) for site in study.sites)


def _group(plan: MethodPlan) -> str:
    """All that decides the releases that arms may share."""
    guide = plan.guide
    return canonical_json(
        [
            plan.privacy.model_dump(mode="json"),
            plan.statistics.model_dump(mode="json"),
            plan.training.model_dump(mode="json"),
            plan.distillation.model_dump(mode="json"),
            plan.allocation.clusters,
            plan.rounds,
            plan.answer_form,
            plan.verifier.model_dump(mode="json"),
            plan.seed,
            None
            if guide is None
            else [guide.records_with_reasons, guide.own_reasons, guide.rate_decay, guide.finish],
        ]
    ).decode()
