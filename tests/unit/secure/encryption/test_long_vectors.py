"""A million entries go through chunk by chunk: exact, and with memory that stays bounded."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

# In a process of its own: its peak memory is then that of this work alone.
SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.aggregate_key import DECRYPTING_WORKER, AggregateKey
from lada_secure.encryption.parameters import aggregation_parameters
from lada_secure.encryption.sealing import SealedSum, parse_public_key, seal
from lada_secure.encryption.workers.process import shared_worker

def peak(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) << 10

def run(sites, length):
    bound = 1000
    params = aggregation_parameters(length=length, sum_bound=sites * bound)
    key = AggregateKey.generate(params)
    sealing_key = parse_public_key(key.public_bytes, params)
    keys = {f"site-{n}": MaskKey.generate() for n in range(sites)}
    public = {name: one.public_bytes for name, one in keys.items()}
    rng = np.random.default_rng(length)
    total, sealed_sum = np.zeros(length, dtype=np.int64), SealedSum(params)
    for name, own in keys.items():
        vector = rng.integers(-bound, bound + 1, length)
        others = {other: raw for other, raw in public.items() if other != name}
        mask = pairwise_mask(
            own, name, others, context=b"x", length=length, modulus=params.plain_modulus
        )
        hidden = masked(vector, mask, bound=bound, modulus=params.plain_modulus)
        total += vector
        sealed_sum.add(seal(sealing_key, params, hidden))
    opened = key.open_sum(sealed_sum.to_bytes())
    return bool((opened == total).all()), params.sealed_bytes

sealer, opener = shared_worker(), shared_worker(DECRYPTING_WORKER)
sites, length = int(sys.argv[1]), int(sys.argv[2])
run(2, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
workers_before = peak(sealer.pid), peak(opener.pid)
exact, sealed_bytes = run(sites, length)
print(json.dumps({
    "exact": exact,
    "sealed_bytes": sealed_bytes,
    "grown": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before,
    "sealer_grown": peak(sealer.pid) - workers_before[0],
    "opener_grown": peak(opener.pid) - workers_before[1],
}))
"""
MIB = 1 << 20


def measured(sites: int, length: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(sites), str(length)],
        capture_output=True,
        text=True,
        timeout=1_000,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_workers_need_no_more_memory_for_forty_chunks_than_for_one_request() -> None:
    """32 chunks go to a worker at once, so from there on it needs no more."""
    found = measured(2, 40 * 4096)
    assert found["exact"]
    assert found["sealer_grown"] <= 24 * MIB
    assert found["opener_grown"] <= 24 * MIB


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("sites", [3, 10])
def test_a_million_entries_are_summed_exactly_in_bounded_memory(sites: int) -> None:
    """About 6 s for 3 sites, 15 s for 10: every pair has its own mask.

    A sealed vector of a million entries has 12 MB. The parent holds a handful of arrays of that
    order, however many sites there are; workers hold 32 chunks.
    """
    found = measured(sites, 1_000_000)
    assert found["exact"]
    assert found["grown"] <= 12 * found["sealed_bytes"], found
    assert found["sealer_grown"] <= 24 * MIB, found
    assert found["opener_grown"] <= 24 * MIB, found
