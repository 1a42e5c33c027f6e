"""A simulated site's data valuations: trained, measured, released and kept, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lada_lab.arms.guides import PLAN_HASH, STUDY, SiteReleases
from lada_lab.arms.study import valuation_parameters
from lada_secure.allocation.data_valuation import (
    ClusterUsefulness,
    ClusterValuation,
    cell_usefulness,
    cluster_valuations,
    usefulness,
)
from lada_secure.allocation.measured_valuation import measured_gains, valuation_student
from lada_secure.allocation.valuation_gains import (
    NoisedGains,
    UnitGains,
    release_gains,
    valuation_spec,
)
from lada_secure.arrays import FloatArray
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.ledger.memory import MemoryLedger


@dataclass(slots=True, kw_only=True)
class SiteTrials:
    """Valuations of one site in one arm. `lm` may be shared. ledger: None without privacy."""

    releases: SiteReleases
    lm: LanguageModel
    ledger: MemoryLedger | None
    _rounds: list[ClusterValuation] = field(default_factory=list)
    _students: dict[tuple[str, ...], AdapterWeights] = field(default_factory=dict)

    @property
    def found(self) -> ClusterUsefulness:
        """What all valuations so far say."""
        return usefulness(
            self._rounds,
            clusters=self.releases.coordinator.grid.clusters,
            least_gain=self.releases.settings.trial_least_gain,
        )

    def agreement(self) -> FloatArray | None:
        """How sure it is that each cell is useful, (d,); None before the first valuation."""
        if not self._rounds:
            return None
        return cell_usefulness(self.found, self.releases.coordinator.grid)

    def release(
        self,
        round_id: int,
        rationales_of_cluster: Mapping[int, Sequence[RationaleExample]],
        tuning: TuningSettings,
    ) -> None:
        """Train a student per cluster and release what each makes of the records.

        Nothing is paid where no cluster has enough paths.
        """
        if not rationales_of_cluster:
            return
        releases = self.releases
        parameters = valuation_parameters(
            releases.settings, releases.noise, clusters=releases.coordinator.grid.clusters
        )
        students = {
            cluster: self._student(paths, tuning)
            for cluster, paths in rationales_of_cluster.items()
        }

        def exact() -> UnitGains:
            return measured_gains(
                self.lm,
                releases.units,
                students,
                reference=releases.reference,
                parameters=parameters,
                batch_size=releases.settings.batch_size,
            )

        if self.ledger is None:
            noised = NoisedGains(vector=exact().vector, parameters=parameters)
        else:
            noised = release_gains(
                lambda _paid: exact(),
                parameters=parameters,
                book=self.ledger,
                spec=valuation_spec(
                    parameters, study_id=STUDY, plan_hash=PLAN_HASH, round_id=round_id
                ),
            ).value
        self._rounds += cluster_valuations(
            noised, {cluster: len(paths) for cluster, paths in rationales_of_cluster.items()}
        )

    def _student(self, paths: Sequence[RationaleExample], tuning: TuningSettings) -> AdapterWeights:
        """Trained once for the same paths: a cluster that is asked for no more gets no new ones."""
        key = tuple(one.example_id for one in paths)
        if key not in self._students:
            self._students[key] = valuation_student(
                self.lm, paths, reference=self.releases.reference, tuning=tuning
            )
        return self._students[key]
