"""A party that ends tells the coordinator's status why, by a code and by nothing else."""

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federation import PreparedFederation

from lada_protocol.failure_codes import FailureCode

LADA = str(Path(sys.executable).with_name("lada"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    prepared = PreparedFederation(tmp_path_factory.mktemp("failing") / "run")
    site = prepared.layout.site("site-b")
    settings = site.settings.read_text()
    # Fewer rows at a time than records that one person may have: the study's sizes do not fit.
    settings = re.sub(r"(?m)^physical_batch_size.*\n", "", settings)
    site.settings.write_text(f"physical_batch_size = 1\n{settings}")
    return prepared


def status_of(federation):
    words = ["server", "status", "--settings", str(federation.layout.coordinator.settings)]
    told = subprocess.run(
        [LADA, *words, "--json"],
        env=federation.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shown = subprocess.run(
        [LADA, *words], env=federation.environment, capture_output=True, text=True, timeout=120
    )
    found = json.loads(told.stdout)
    return found, {one["id"]: one for one in found["parties"]}, shown.stdout


def start_without_room(federation, party):
    """A party on whose disk no byte fits; as root, nothing else would stop it from writing."""

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    return subprocess.Popen(
        federation.child(party).arguments,
        env={**federation.environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=full,
    )


def test_the_status_says_which_party_has_ended_why_and_what_comes_next(federation):
    coordinator = federation.start("coordinator")
    try:
        unfit = federation.start("site-b")
        said_unfit, _ = unfit.communicate(timeout=300)
        full = start_without_room(federation, "site-c")
        said_full, _ = full.communicate(timeout=300)

        assert unfit.returncode == 2, said_unfit
        # Everything that helps stands on the site's own screen.
        assert "physical_batch_size of the site's settings is 1" in said_unfit
        assert full.returncode == 1, said_full
        assert "cannot write" in said_full
        for said in (said_unfit, said_full):
            assert "Traceback" not in said

        deadline = time.monotonic() + 60
        while True:
            found, parties, shown = status_of(federation)
            if found["state"] == "waiting" or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert found["running"]
        ended = {name: one["code"] for name, one in parties.items() if one["state"] == "ended"}
        assert ended == {"site-b": "does_not_fit", "site-c": "disk"}
        for name, code in ended.items():
            assert parties[name]["meaning"] == FailureCode(code).meaning
            assert FailureCode(code).mend in parties[name]["next"]
            assert "the coordinator waits for it" in parties[name]["next"]
            assert f"{name}: ended ({code})" in shown
        # No word of what the site knows is on the coordinator's disk.
        board = b"".join(
            path.read_bytes() for path in federation.layout.coordinator.state.glob("board.sqlite*")
        )
        assert b"does_not_fit" in board
        assert b"physical_batch_size" not in board

        # Mended, it goes on by the same command, and has not ended any more.
        federation.edit(
            federation.layout.site("site-b").settings,
            "physical_batch_size = 1\n",
            "physical_batch_size = 16\n",
        )
        again = federation.start("site-b")
        try:
            deadline = time.monotonic() + 120
            while status_of(federation)[1]["site-b"]["state"] == "ended":
                assert time.monotonic() < deadline
                assert again.poll() is None
        finally:
            again.kill()
            again.communicate()
    finally:
        coordinator.kill()
        coordinator.communicate()
