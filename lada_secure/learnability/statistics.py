"""Noised statistics of a site: how much of its data lies where, and how hard it finds it.

Per public cluster c: the mass n_c and the clipped loss mass e_c, where every privacy unit (a
patient, a customer) spreads a weight of 1 over its records. In whole numbers at a public scale s,
because masks, encryption and discrete noise are exact only over whole numbers.

Sensitivity under add/remove of one unit, which changes the vector by what that unit adds:

| part | bound | reason |
|---|---|---|
| masses | L2 <= s | entries >= 0 that sum to at most s, so L2 <= L1 <= s |
| loss masses | L2 <= s | each is at most its cluster's mass: a clipped loss is at most 1 clip |
| whole vector | L2 <= s sqrt(2) | Pythagoras |

Rounding happens per unit and towards zero, so it cannot raise any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LedgerError, LocalProtocolError, ParameterError, PeerError
from lada_secure.learnability.arrays import FloatArray, IntArray, frozen
from lada_secure.learnability.cells import MAX_CLUSTERS
from lada_secure.privacy.events import gaussian_event
from lada_secure.privacy.ledger import (
    DISCRETE_GAUSSIAN,
    MIN_STD_STEPS,
    LedgerBook,
    ReleaseSpec,
)
from lada_secure.privacy.mechanisms import discrete_gaussian_vector
from lada_secure.privacy.released import Released
from lada_secure.privacy.units import Unit

PURPOSE = "statistics"

# Exact shares for units of 1 to 6 records: 120 is a multiple of all of them.
_FINEST_SCALE = 120
# Noise beyond this many standard deviations has a probability below 1e-22.
_CLAMP_STDS = 10
_MAX_UNITS = 10**7
_MAX_SCALE = 10**6


def l2_sensitivity(scale: int) -> float:
    """Largest L2 change of the vector by one unit, scale x sqrt(2), never rounded down."""
    return math.nextafter(scale * math.sqrt(2.0), math.inf)


def noise_std(*, scale: int, noise_multiplier: float) -> float:
    """Noise per entry in whole-number steps, noise_multiplier x sensitivity, never rounded down."""
    return math.nextafter(noise_multiplier * l2_sensitivity(scale), math.inf)


def statistics_scale(noise_multiplier: float) -> int:
    """Smallest multiple of 120 at which the noise has at least 16 steps.

    Raises: ParameterError: noise_multiplier <= 0 or so small that no allowed scale will do.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0.0):
        raise ParameterError(f"noise_multiplier: expected above 0, got {noise_multiplier}")
    needed = MIN_STD_STEPS / (noise_multiplier * math.sqrt(2.0))
    scale = _FINEST_SCALE * max(math.ceil(needed / _FINEST_SCALE), 1)
    if scale > _MAX_SCALE:
        raise ParameterError(
            f"noise_multiplier {noise_multiplier}: no scale up to {_MAX_SCALE} gives the noise "
            f"{MIN_STD_STEPS} steps; use more noise"
        )
    return scale


def site_bound(*, scale: int, max_units: int, noise_multiplier: float) -> int:
    """Public bound on the magnitude of every entry that one site sends.

    The masses of `max_units` units plus ten standard deviations of noise. Entries beyond it are
    clamped, which is post-processing; a site with more units than the plan allows loses accuracy,
    not privacy.
    """
    std = noise_std(scale=scale, noise_multiplier=noise_multiplier)
    return scale * max_units + math.ceil(_CLAMP_STDS * std)


def sum_bound(bound: int, *, sites: int) -> int:
    """Bound on the magnitude of every entry of the sum over `sites`, for the opening."""
    if bound < 1 or sites < 1:
        raise ParameterError(f"sum bound: expected positive numbers, got {bound} and {sites}")
    return bound * sites


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsParameters:
    """Public parameters of the statistics; one object fixes clipping, noise, bound and event.

    clusters: C. loss_clip: > 0, nats per token. noise_multiplier: noise std / L2 sensitivity.
    max_units: most units that a site is expected to have. scale: whole-number steps per unit of
    weight; `statistics_scale` gives it.
    """

    clusters: int
    loss_clip: float
    noise_multiplier: float
    max_units: int
    scale: int

    def __post_init__(self) -> None:
        """Check ranges.

        Raises: ParameterError: a value out of range, or noise of fewer than 16 steps.
        """
        if not 1 <= self.clusters <= MAX_CLUSTERS:
            raise ParameterError(
                f"statistics clusters: expected 1 to {MAX_CLUSTERS}, got {self.clusters}"
            )
        _check_clip_and_scale(self.loss_clip, self.scale)
        if not 1 <= self.max_units <= _MAX_UNITS:
            raise ParameterError(
                f"statistics max_units: expected 1 to {_MAX_UNITS}, got {self.max_units}"
            )
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0.0):
            raise ParameterError(
                f"statistics noise_multiplier: expected above 0, got {self.noise_multiplier}"
            )
        if self.std < MIN_STD_STEPS:
            raise ParameterError(
                f"statistics noise: expected a std of at least {MIN_STD_STEPS} steps, got "
                f"{self.std:.2f}; raise the scale from {self.scale} to "
                f"{statistics_scale(self.noise_multiplier)}"
            )

    @property
    def length(self) -> int:
        """Entries of the vector: C masses, then C loss masses."""
        return 2 * self.clusters

    @property
    def l2_sensitivity(self) -> float:
        """Under add/remove of one unit, in steps."""
        return l2_sensitivity(self.scale)

    @property
    def std(self) -> float:
        """Standard deviation of the noise per entry, in steps."""
        return noise_std(scale=self.scale, noise_multiplier=self.noise_multiplier)

    @property
    def site_bound(self) -> int:
        """Bound on every entry of one site; see `site_bound`."""
        return site_bound(
            scale=self.scale, max_units=self.max_units, noise_multiplier=self.noise_multiplier
        )

    def sum_bound(self, *, sites: int) -> int:
        """Bound on every entry of a sum over sites."""
        return sum_bound(self.site_bound, sites=sites)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitStatistics:
    """Exact statistics of private data, before noise. Never leaves the site; no repr of values.

    vector: (2C,) int64 >= 0, C masses then C loss masses, in steps.
    """

    vector: IntArray = field(repr=False)
    clusters: int
    loss_clip: float
    scale: int

    @property
    def l2_sensitivity(self) -> float:
        """Under add/remove of one unit, in steps."""
        return l2_sensitivity(self.scale)


def unit_statistics(
    units: Sequence[Unit],
    cluster_of_record: Mapping[str, int],
    loss_of_record: Mapping[str, float],
    *,
    clusters: int,
    loss_clip: float,
    scale: int,
) -> UnitStatistics:
    """Add up what every privacy unit contributes.

    A unit with k records gives each of them weight 1/k. Its share of cluster c, in steps, is
    floor(s x its records there / k); its loss mass is floor(s x the sum of their clipped losses
    over the clip / k), and never above that share.

    Args:
        units: of `bound_units`; may be empty.
        cluster_of_record: public cluster of each record, by record_id.
        loss_of_record: SLM loss of each record, nats per token, by record_id.
    Returns: all zeros for no units.
    Raises: ParameterError: a record without cluster or loss, or a cluster out of range.

    Values of loss | count as
    ---|---
    below 0 | 0
    above the clip, +inf | the clip
    NaN | the clip: refusing the record would let one record stop a release
    """
    _check_clip_and_scale(loss_clip, scale)
    masses = np.zeros(clusters, dtype=np.int64)
    loss_masses = np.zeros(clusters, dtype=np.int64)
    for unit in units:
        mass, loss_mass = _contribution(
            unit,
            cluster_of_record,
            loss_of_record,
            clusters=clusters,
            loss_clip=loss_clip,
            scale=scale,
        )
        masses += mass
        loss_masses += loss_mass
    return UnitStatistics(
        vector=frozen(np.concatenate([masses, loss_masses])),
        clusters=clusters,
        loss_clip=loss_clip,
        scale=scale,
    )


def _contribution(
    unit: Unit,
    cluster_of_record: Mapping[str, int],
    loss_of_record: Mapping[str, float],
    *,
    clusters: int,
    loss_clip: float,
    scale: int,
) -> tuple[IntArray, IntArray]:
    counts = np.zeros(clusters, dtype=np.int64)
    clipped = np.zeros(clusters, dtype=np.float64)
    for record in unit.records:
        try:
            cluster = cluster_of_record[record.record_id]
            loss = loss_of_record[record.record_id]
        except KeyError as error:
            raise ParameterError(
                "statistics: a record has no cluster or no loss; embed and score every record "
                "of every unit first"
            ) from error
        if not 0 <= cluster < clusters:
            raise ParameterError(f"statistics: expected clusters in [0, {clusters}), got {cluster}")
        counts[cluster] += 1
        clipped[cluster] += 1.0 if math.isnan(loss) else min(max(loss / loss_clip, 0.0), 1.0)
    size = len(unit.records)
    mass = scale * counts // size
    # The minimum makes the bound exact whatever floating point does to the sum above.
    loss_mass = np.minimum(np.floor(scale * clipped / size).astype(np.int64), mass)
    return mass, loss_mass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedStatistics:
    """A site's statistics after noise and clamping: free to use and to send.

    vector: (2C,) int64, every entry within `parameters.site_bound` of 0.
    """

    vector: IntArray
    parameters: StatisticsParameters

    def __post_init__(self) -> None:
        """Check the proven bound.

        Raises: ParameterError: wrong length or an entry beyond the bound.
        """
        _check_vector(self.vector, self.parameters.length, self.parameters.site_bound)
        object.__setattr__(self, "vector", frozen(self.vector))

    def estimates(self) -> ClusterEstimates:
        """What the site may believe of its own data."""
        return cluster_estimates(self.vector, self.parameters, sites=1)

    def to_bytes(self) -> bytes:
        """Canonical bytes, the output that the ledger hashes and keeps for retries."""
        return canonical_json({"version": 1, "vector": self.vector.tolist()})


def parse_noised_statistics(raw: bytes, parameters: StatisticsParameters) -> NoisedStatistics:
    """Read the stored output of a release.

    Raises: LedgerError: the bytes are not what `NoisedStatistics.to_bytes` writes for these
        parameters: the plan changed under the ledger, or the ledger is damaged.
    """
    try:
        value = parse_canonical_json(raw, max_bytes=32 * parameters.length + 64)
    except PeerError as error:
        raise LedgerError(f"stored statistics: {error}") from error
    if not isinstance(value, Mapping) or set(value) != {"version", "vector"}:
        raise LedgerError("stored statistics: expected the keys 'version' and 'vector'")
    entries = value["vector"]
    if value["version"] != 1 or not isinstance(entries, list):
        raise LedgerError("stored statistics: expected version 1 and a list of numbers")
    if not all(type(entry) is int and abs(entry) <= parameters.site_bound for entry in entries):
        raise LedgerError(
            f"stored statistics: expected whole numbers within {parameters.site_bound} of 0"
        )
    if len(entries) != parameters.length:
        raise LedgerError(
            f"stored statistics: expected {parameters.length} entries, got {len(entries)}; "
            "the plan's clusters differ from those of the release"
        )
    return NoisedStatistics(vector=np.array(entries, dtype=np.int64), parameters=parameters)


def statistics_spec(
    parameters: StatisticsParameters,
    *,
    study_id: str,
    plan_hash: str,
    round_id: int,
    unit: str = "unit",
) -> ReleaseSpec:
    """The ledger's description of one round's statistics, built from the same parameters."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose=PURPOSE,
        mechanism=DISCRETE_GAUSSIAN,
        event=gaussian_event(parameters.noise_multiplier),
        parameters={"l2_sensitivity": parameters.l2_sensitivity, "std": parameters.std},
        unit=unit,
    )


def release_statistics(
    compute: Callable[[], UnitStatistics],
    *,
    parameters: StatisticsParameters,
    book: LedgerBook,
    spec: ReleaseSpec,
    after: Sequence[Released[object]] = (),
) -> Released[NoisedStatistics]:
    """Pay, compute, add discrete Gaussian noise, clamp, commit: the only way out for statistics.

    The noise is the site's own full guarantee; it depends on no other party.

    Args:
        compute: `unit_statistics` of the site's records; called only once the ledger has the
            reservation, and not at all where this round's output is stored already.
        spec: from `statistics_spec` with the same parameters.
        after: releases that the computation builds on, such as the SLM's adapters whose losses
            it uses.
    Returns: every entry within `parameters.site_bound` of 0.
    Raises: PrivacyBudgetExceeded: nothing was spent and no record touched. LocalProtocolError:
        `spec` or the computed statistics belong to other parameters. LedgerError: see
        `LedgerBook.reserve`, or stored bytes that do not fit the parameters.
    """
    wanted = statistics_spec(
        parameters,
        study_id=spec.study_id,
        plan_hash=spec.plan_hash,
        round_id=spec.round_id,
        unit=spec.unit,
    )
    if spec != wanted:
        raise LocalProtocolError(
            "statistics: the release that would be paid for is not the one that these parameters "
            "describe; build it with statistics_spec"
        )

    def noised() -> NoisedStatistics:
        exact = compute()
        _check_same(exact, parameters)
        vector = discrete_gaussian_vector(exact.vector, sigma=parameters.std)
        bound = parameters.site_bound
        clamped = np.clip(np.asarray(vector, dtype=np.int64), -bound, bound)
        return NoisedStatistics(vector=clamped, parameters=parameters)

    return book.release(
        spec,
        compute=noised,
        encode=NoisedStatistics.to_bytes,
        decode=lambda raw: parse_noised_statistics(raw, parameters),
        after=after,
    )


def _check_same(exact: UnitStatistics, parameters: StatisticsParameters) -> None:
    """Noise is sized for one scale, clip and length; statistics made with others void it."""
    got = (exact.clusters, exact.loss_clip, exact.scale, exact.vector.shape)
    expected = (
        parameters.clusters,
        parameters.loss_clip,
        parameters.scale,
        (parameters.length,),
    )
    if got != expected:
        raise LocalProtocolError(
            f"statistics: expected clusters, loss clip, scale and shape {expected}, got {got}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterEstimates:
    """Readable estimates per cluster from noised numbers; all (C,) float64.

    masses: units of privacy per cluster, >= 0; what is within one standard deviation of the noise
    counts as 0. mean_losses: nats per token in [0, loss clip]. mass_std: noise of a mass, in units.
    """

    masses: FloatArray
    mean_losses: FloatArray
    mass_std: float

    @property
    def shares(self) -> FloatArray:
        """Masses as shares that sum to 1; equal shares where all masses are 0."""
        total = float(self.masses.sum())
        if total <= 0.0:
            return np.full(len(self.masses), 1.0 / len(self.masses))
        shares: FloatArray = self.masses / total
        return shares


def cluster_estimates(
    vector: npt.ArrayLike, parameters: StatisticsParameters, *, sites: int
) -> ClusterEstimates:
    """Decode a noised vector, or an opened sum over `sites` of them.

    A mean loss is a ratio of two noised numbers: below three standard deviations of mass it would
    be noise, and the mean over all clusters stands in for it.

    Args: vector: (2C,) whole numbers within the bound of the sum.
    Raises: ParameterError: wrong length, or an entry beyond the bound.
    """
    entries = np.asarray(vector)
    bound = parameters.sum_bound(sites=sites)
    _check_vector(entries, parameters.length, bound)
    numbers = entries.astype(np.float64) / parameters.scale
    masses, loss_masses = numbers[: parameters.clusters], numbers[parameters.clusters :]
    std = parameters.std * math.sqrt(sites) / parameters.scale
    clip = parameters.loss_clip
    total_std = std * math.sqrt(parameters.clusters)
    overall = 0.5
    if float(masses.sum()) > total_std:
        overall = float(np.clip(loss_masses.sum() / masses.sum(), 0.0, 1.0))
    firm = masses > 3.0 * std
    ratios = np.where(firm, loss_masses / np.where(firm, masses, 1.0), overall)
    return ClusterEstimates(
        masses=np.where(masses > std, masses, 0.0),
        mean_losses=clip * np.clip(ratios, 0.0, 1.0),
        mass_std=std,
    )


def _check_vector(vector: npt.NDArray[np.generic], length: int, bound: int) -> None:
    if vector.shape != (length,) or not np.issubdtype(vector.dtype, np.integer):
        raise ParameterError(
            f"statistics: expected ({length},) whole numbers, got {vector.shape} {vector.dtype}"
        )
    if len(vector) and max(abs(int(vector.min())), abs(int(vector.max()))) > bound:
        raise ParameterError(f"statistics: an entry lies beyond the bound of {bound}")


def _check_clip_and_scale(loss_clip: float, scale: int) -> None:
    if not (math.isfinite(loss_clip) and loss_clip > 0.0):
        raise ParameterError(f"loss clip: expected above 0 nats per token, got {loss_clip}")
    if not 1 <= scale <= _MAX_SCALE:
        raise ParameterError(f"statistics scale: expected 1 to {_MAX_SCALE}, got {scale}")
