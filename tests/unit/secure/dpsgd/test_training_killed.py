"""kill -9 in the middle of training: it resumes, it ends, and the ledger covers what was spent."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from trainer_doubles import PLAN_HASH, approve, example, paid, small_model, units_of_sizes

from lada_clients.site.ledger.store import SqliteLedger
from lada_secure.dpsgd import distillation as training
from lada_secure.dpsgd import trainer
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.privacy.ledger.entries import CommitEntry, ReserveEntry, ResumeEntry
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.ledger.verification import verify_ledger

STEPS = 40
KILLS = 10
CAPS = BudgetCaps(target_delta=1e-5, total_epsilon=400.0, study_epsilon=400.0)
PRIVACY = DpSgdParameters(
    noise_multiplier=4.0,
    l2_clip_norm=0.5,
    sampling_probability=0.25,
    expected_units=2.0,
    steps=STEPS,
    pool_gradients="public",
)
# Drawn ahead, as on a GPU: a vector is at hand at any moment of a kill.
SETTINGS = TrainerSettings(
    pool_batch_size=2, physical_batch_size=6, steps_per_reservation=2, noise="ahead"
)


def open_ledger(folder, key):
    return SqliteLedger(
        folder / "ledger.sqlite",
        site="site-1",
        population="patients",
        signing_key=key,
        caps=CAPS,
        clock=lambda: datetime.now(UTC),
        time_step_s=60,
    )


def train(folder, key, on_step):
    with open_ledger(folder, key) as book:
        return training.distil(
            attach_adapters(small_model(), AdapterSettings(rank=2)),
            units=paid(units_of_sizes(1, 2, 1)),
            pool=[example(50), example(51)],
            privacy=PRIVACY,
            settings=SETTINGS,
            book=book,
            spec=training.training_spec(PRIVACY, study_id="study", plan_hash=PLAN_HASH, round_id=0),
            progress=on_step,
        )


def train_in_child(folder, key, log):
    """Train in a forked process that writes a line per noise vector before it is used."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        draw = trainer.noised_gradient

        def logged(total, privacy, noise):
            noised = draw(total, privacy, noise)
            # Without units the sum is the noise alone, so equal lines were equal noise.
            with log.open("ab", buffering=0) as file:
                file.write(noised[:8].numpy().tobytes().hex().encode() + b"\n")
            return noised

        trainer.noised_gradient = logged
        train(folder, key, lambda _: time.sleep(0.05))
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_ten_times_at_random_it_ends_and_each_step_was_paid_for_once(tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments of the kills: seed {seed}")
    moments = random.Random(seed)
    key = Ed25519PrivateKey.generate()
    log = tmp_path / "noise.log"
    log.touch()
    with open_ledger(tmp_path, key) as book:
        approve(book)
    killed = 0
    while killed < KILLS:
        child = train_in_child(tmp_path, key, log)
        before = len(log.read_bytes().splitlines())
        deadline = time.monotonic() + 60.0
        # Let it take a few steps at most, then kill it wherever it is.
        while time.monotonic() < deadline and len(log.read_bytes().splitlines()) <= before:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        killed += 1
    assert killed == KILLS

    with open_ledger(tmp_path, key) as book:
        committed = sum(isinstance(one, CommitEntry) for one in book.entries())
    result = train(tmp_path, key, lambda _: None)
    assert len(result.public_losses) == STEPS
    with open_ledger(tmp_path, key) as book:
        entries = book.entries()
    lines = [line for line in log.read_bytes().splitlines() if len(line) == 128]
    paid = sum(one.event.steps for one in entries if isinstance(one, ReserveEntry))
    # One output a chunk left, so one payment is enough, however many tries died on the way.
    assert paid == STEPS
    assert len(lines) >= 2 * committed
    assert any(isinstance(one, ResumeEntry) for one in entries)
    assert sum(isinstance(one, CommitEntry) for one in entries) == STEPS // 2
    assert len(set(lines)) == len(lines)
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    verify_ledger(entries, public_key=raw, caps=CAPS)
