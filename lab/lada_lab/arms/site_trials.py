"""A simulated site's path trials: trained, measured, released and remembered, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lada_lab.arms.guides import PLAN_HASH, STUDY, SiteReleases
from lada_lab.arms.study import trial_parameters
from lada_secure.allocation.data_valuation import (
    ClusterTrial,
    ClusterUsefulness,
    cell_usefulness,
    trials_of,
    usefulness,
)
from lada_secure.allocation.measured_valuation import measured_trials, trial_student
from lada_secure.allocation.valuation_gains import (
    NoisedGains,
    UnitGains,
    release_trials,
    trials_spec,
)
from lada_secure.arrays import FloatArray
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.examples import PathExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.ledger.memory import MemoryLedger


@dataclass(slots=True, kw_only=True)
class SiteTrials:
    """Trials of one site in one arm. `lm` may be shared. ledger: None without privacy."""

    releases: SiteReleases
    lm: LanguageModel
    ledger: MemoryLedger | None
    _rounds: list[ClusterTrial] = field(default_factory=list)
    _students: dict[tuple[str, ...], AdapterWeights] = field(default_factory=dict)

    @property
    def found(self) -> ClusterUsefulness:
        """What all trials so far say."""
        return usefulness(
            self._rounds,
            clusters=self.releases.coordinator.grid.clusters,
            least_gain=self.releases.settings.trial_least_gain,
        )

    def agreement(self) -> FloatArray | None:
        """How sure it is that each cell is useful, (d,); None before the first trial."""
        if not self._rounds:
            return None
        return cell_usefulness(self.found, self.releases.coordinator.grid)

    def release(
        self,
        round_id: int,
        paths_of_cluster: Mapping[int, Sequence[PathExample]],
        tuning: TuningSettings,
    ) -> None:
        """Train a student per cluster and release what each makes of the records.

        Nothing is paid where no cluster has enough paths.
        """
        if not paths_of_cluster:
            return
        releases = self.releases
        parameters = trial_parameters(
            releases.settings, releases.noise, clusters=releases.coordinator.grid.clusters
        )
        students = {
            cluster: self._student(paths, tuning) for cluster, paths in paths_of_cluster.items()
        }

        def exact() -> UnitGains:
            return measured_trials(
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
            noised = release_trials(
                lambda _paid: exact(),
                parameters=parameters,
                book=self.ledger,
                spec=trials_spec(
                    parameters, study_id=STUDY, plan_hash=PLAN_HASH, round_id=round_id
                ),
            ).value
        self._rounds += trials_of(
            noised, {cluster: len(paths) for cluster, paths in paths_of_cluster.items()}
        )

    def _student(self, paths: Sequence[PathExample], tuning: TuningSettings) -> AdapterWeights:
        """Trained once for the same paths: a cluster that is asked for no more gets no new ones."""
        key = tuple(one.example_id for one in paths)
        if key not in self._students:
            self._students[key] = trial_student(
                self.lm, paths, reference=self.releases.reference, tuning=tuning
            )
        return self._students[key]
