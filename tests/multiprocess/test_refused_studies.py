"""Studies that must not run: a site's refusal, a foreign certificate, an interrupted run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federation import PreparedFederation
from psutil import process_iter

from lada_clients.ca.authority import init_ca, issue_party
from lada_protocol.failure_codes import FailureCode
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role

LADA = str(Path(sys.executable).with_name("lada"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A prepared federation that no test changes."""
    return PreparedFederation(tmp_path_factory.mktemp("template") / "run")


@pytest.fixture
def prepared(template, tmp_path, monkeypatch):
    """A copy of the prepared federation that a test may change."""
    root = tmp_path / "run"
    shutil.copytree(template.layout.root, root)
    copy = object.__new__(PreparedFederation)
    copy.environment = template.environment
    copy.layout = type(template.layout)(root=root, site_ids=template.layout.site_ids)
    return copy


def processes_with(text):
    commands = (" ".join(one.info["cmdline"] or ()) for one in process_iter(["cmdline"]))
    return [command for command in commands if text in command]


@pytest.mark.slow
def test_a_plan_over_a_sites_policy_ends_the_study_with_its_reason(prepared):
    site = prepared.layout.site("site-b")
    prepared.edit(
        site.root / "policy.toml", "epsilon_cap_per_study = 8.0", "epsilon_cap_per_study = 1.0"
    )
    sentence = "its epsilon cap is 8.0, the policy allows 1.0 per study"
    running = {party: prepared.start(party) for party in ("coordinator", "auditor", "site-a")}
    running["site-c"] = prepared.start("site-c")
    refusing = prepared.start("site-b")
    said, _ = refusing.communicate(timeout=200)
    assert refusing.returncode == 1
    assert sentence in said
    assert "Traceback" not in said
    for party, process in running.items():
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 1, (party, said)
        assert "2 sites " in said
        assert "take part, 3 are needed (site-b: " in said
        # What the policy allows stays at the site; its code travels, with what it means.
        assert f"site-b: {FailureCode.POLICY.meaning}" in said
        assert sentence not in said
        assert "Traceback" not in said
    assert list(site.state.rglob("mask-*")) == []
    events = map(json.loads, prepared.layout.coordinator.events.read_text().splitlines())
    assert [one["code"] for one in events if one["event"] == "failed"] == ["study_failed"]


def test_a_certificate_of_another_authority_is_refused_by_name(prepared, study):
    site = prepared.layout.site("site-c")
    other = prepared.layout.root / "other-ca"
    init_ca(other, name="another", days=2, now=study.now)
    shutil.rmtree(site.identity)
    issue_party(
        other,
        party=PartyName(role=Role.SITE, id="site-c"),
        hosts=("localhost",),
        days=1,
        out=site.identity,
        now=study.now,
    )
    process = prepared.start("site-c")
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "roster" in said
    assert "Traceback" not in said


def test_an_interrupted_run_leaves_no_process(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [LADA, "mock", "run", "--preset", "tiny", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (out / "site-a" / "state" / "events.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "no process is left" in said
    assert processes_with(str(out)) == []
