"""Secure aggregation beside the usual way: CKKS under one key that every client holds.

Baseline: TenSEAL CKKS, N = 8192, coefficient modulus [60, 40, 40, 60], scale 2^40, as NVFlare's
homomorphic aggregation sets it up, on the same vector.
"""

from __future__ import annotations

import contextlib
import functools
import io
import operator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lada_lab.micro.cpu_time import BASELINE_DEGREE, Stopwatch, baseline_context
from lada_secure.arrays import IntArray
from lada_secure.encryption.aggregate_key import DECRYPTING_WORKER, AggregateKey
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.parameters import (
    POLY_MODULUS_DEGREE,
    AggregationParameters,
    aggregation_parameters,
)
from lada_secure.encryption.parsing import sealed_chunks
from lada_secure.encryption.sealing import SealedSum, SealingKey, parse_public_key, seal
from lada_secure.encryption.workers.process import WorkerProcess, shared_worker
from lada_secure.errors import LocalProtocolError, ParameterError

BASELINE_COEFF_MODULUS_BITS: Final = [60, 40, 40, 60]
# A bound of 2^14 per site is what noised statistics at sigma of 16 steps and more come to.
SITE_BOUND: Final = 2**14
_CONTEXT: Final = b'{"bench":"opening"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    params: AggregationParameters
    key: AggregateKey
    sealing_key: SealingKey
    mask_keys: dict[str, MaskKey]

    def contribution(self, site: str, values: IntArray) -> bytes:
        """What one site does: masks against all others, encryption, serialisation."""
        peers = {name: key.public_bytes for name, key in self.mask_keys.items() if name != site}
        mask = pairwise_mask(
            self.mask_keys[site],
            site,
            peers,
            context=_CONTEXT,
            length=self.params.length,
            modulus=self.params.plain_modulus,
        )
        hidden = masked(values, mask, bound=SITE_BOUND, modulus=self.params.plain_modulus)
        return seal(self.sealing_key, self.params, hidden)


class _Baseline:
    def __init__(self) -> None:
        import tenseal

        self._tenseal: Any = tenseal
        self._context = baseline_context(BASELINE_COEFF_MODULUS_BITS)

    def contribution(self, values: list[float]) -> bytes:
        # TenSEAL prints a warning for vectors of more than one ciphertext.
        with contextlib.redirect_stdout(io.StringIO()):
            return bytes(self._tenseal.ckks_vector(self._context, values).serialize())

    def load(self, raw: bytes) -> Any:
        return self._tenseal.ckks_vector_from(self._context, raw)

    def add(self, contributions: list[bytes]) -> bytes:
        total = functools.reduce(operator.iadd, map(self.load, contributions))
        return bytes(total.serialize())

    def add_loaded(self, contributions: list[Any]) -> Any:
        first, second, *rest = contributions
        return functools.reduce(operator.iadd, rest, first + second)

    def open(self, raw: bytes) -> list[float]:
        return list(self.load(raw).decrypt())


def run_aggregation(
    *, entries: int = 100_000, sites: int = 10, repetitions: int = 5
) -> dict[str, Any]:
    """Measure one site's contribution, the server's addition and the secure aggregation.

    Returns: JSON-ready: `ratio.encrypt`, `ratio.bytes`, `ratio.add`, `ratio.open` (ours over the
        baseline's, medians of CPU time; add and open from received bytes to bytes or numbers),
        `ratio.add_arithmetic` (the additions alone, on parsed ciphertexts), the figures
        behind them, and `exact`.
    Raises: ParameterError: out of range.
    """
    if not 2 <= sites <= 100 or not 1 <= repetitions <= 1000:
        raise ParameterError(
            f"sites must be 2 to 100 and repetitions 1 to 1000, got {sites} and {repetitions}"
        )
    params = aggregation_parameters(length=entries, sum_bound=sites * SITE_BOUND)
    return _run(params, sites, repetitions, shared_worker(), shared_worker(DECRYPTING_WORKER))


def _run(
    params: AggregationParameters,
    sites: int,
    repetitions: int,
    sealer: WorkerProcess,
    opener: WorkerProcess,
) -> dict[str, Any]:
    key = AggregateKey.generate(params)
    names = [f"site-{index}" for index in range(sites)]
    ours = _Ours(
        params=params,
        key=key,
        sealing_key=parse_public_key(key.public_bytes, params),
        mask_keys={name: MaskKey.generate() for name in names},
    )
    baseline = _Baseline()
    rng = np.random.default_rng(0)
    vectors = {name: rng.integers(-SITE_BOUND, SITE_BOUND + 1, params.length) for name in names}
    sealed = [ours.contribution(name, vectors[name]) for name in names]
    as_floats = {name: (vector / SITE_BOUND).tolist() for name, vector in vectors.items()}
    plain_sum = np.sum(list(vectors.values()), axis=0)
    encrypted = [baseline.contribution(as_floats[name]) for name in names]
    loaded = [baseline.load(raw) for raw in encrypted]
    parsed = [_parsed(raw, params) for raw in sealed]
    watch = Stopwatch(workers=[sealer, opener])
    baseline_error = 0.0
    for repetition in range(repetitions):
        name = names[repetition % sites]
        watch.measure("encrypt", ours.contribution, name, vectors[name])
        watch.measure("baseline_encrypt", baseline.contribution, as_floats[name])
        total = watch.measure("add", _sum, params, sealed)
        baseline_total = watch.measure("baseline_add", baseline.add, encrypted)
        watch.measure("add_arithmetic", _added, parsed, params)
        watch.measure("baseline_add_arithmetic", baseline.add_loaded, loaded)
        opened = watch.measure("open", key.open_sum, total)
        floats = watch.measure("baseline_open", baseline.open, baseline_total)
        if not (opened == plain_sum).all():
            raise LocalProtocolError("the opened sum differs from the sum of the vectors")
        error = np.abs(np.asarray(floats) * SITE_BOUND - plain_sum).max()
        baseline_error = max(baseline_error, float(error))
    return _report(watch, params, sites, repetitions, len(encrypted[0]), baseline_error)


def _sum(params: AggregationParameters, sealed: list[bytes]) -> bytes:
    total = SealedSum(params)
    for raw in sealed:
        total.add(raw)
    return total.to_bytes()


def _parsed(raw: bytes, params: AggregationParameters) -> npt.NDArray[np.uint64]:
    return np.stack(list(sealed_chunks(raw, params)))


def _added(
    parsed: list[npt.NDArray[np.uint64]], params: AggregationParameters
) -> npt.NDArray[np.uint64]:
    modulus = np.uint64(params.coeff_modulus)
    total = parsed[0].copy()
    for contribution in parsed[1:]:
        total += contribution
        np.minimum(total, total - modulus, out=total)
    return total


def _report(
    watch: Stopwatch,
    params: AggregationParameters,
    sites: int,
    repetitions: int,
    baseline_bytes: int,
    baseline_error: float,
) -> dict[str, Any]:
    steps = ("encrypt", "add", "add_arithmetic", "open")
    ratios = {step: round(watch.ratio(step, f"baseline_{step}"), 4) for step in steps}
    ratios["bytes"] = round(params.sealed_bytes / baseline_bytes, 4)
    return {
        "entries": params.length,
        "sites": sites,
        "repetitions": repetitions,
        "exact": True,
        "ratio": ratios,
        "cpu_s": {step: round(watch.median(step), 6) for step in steps},
        "bytes": {
            "contribution": params.sealed_bytes,
            "public_key": params.public_key_bytes,
            "mask_key": 32,
        },
        "parameters": {
            "poly_modulus_degree": POLY_MODULUS_DEGREE,
            "coeff_modulus_bits": [params.coeff_modulus.bit_length()],
            "plain_modulus": params.plain_modulus,
            "sum_bound": params.sum_bound,
        },
        "baseline": {
            "scheme": "CKKS, one key for all clients",
            "poly_modulus_degree": BASELINE_DEGREE,
            "coeff_modulus_bits": BASELINE_COEFF_MODULUS_BITS,
            "cpu_s": {step: round(watch.median(f"baseline_{step}"), 6) for step in steps},
            "bytes": baseline_bytes,
            "max_error": baseline_error,
        },
    }
