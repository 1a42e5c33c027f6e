"""A whole federation of real processes: what it writes, what verifies, and what a change breaks.

One run of the tiny preset serves all tests of this file.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from psutil import process_iter

from lada_clients.audit.folder import read_evidence
from lada_clients.net.study_folder import find_study_folder
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import parse_plan
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS
from lada_protocol.wire.envelope import envelope_from_line
from lada_protocol.wire.messages import LlmUpdateBody, parse_body
from lada_secure.data.records import pool_bytes, read_pool
from lada_secure.method.plan import split_pool
from lada_secure.privacy.ledger.entries import CommitEntry, parse_ledger_lines
from lada_server.study.outlook import outlook_of

LADA = str(Path(sys.executable).with_name("lada"))
SITES = 3
SEED = 20_261_123


def lada(*arguments, timeout_s=280):
    return subprocess.run(
        [LADA, *arguments], capture_output=True, timeout=timeout_s, check=False, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder and what the command printed."""
    out = tmp_path_factory.mktemp("mock") / "run"
    done = lada(
        "mock", "run", "--preset", "tiny", "--sites", str(SITES), "--rounds", "2",
        "--out", str(out), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done


def stored_outputs(folder):
    """The noised outputs that a site's ledger holds, by (round, purpose), read from its file."""
    (path,) = (folder / "state").glob("ledger-*.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        lines = b"".join(
            row[0] + b"\n" for row in connection.execute("SELECT line FROM entries ORDER BY number")
        )
        outputs = dict(connection.execute("SELECT reserve_hash, payload FROM outputs"))
    return {
        (one.round_id, one.purpose, one.chunk): outputs[one.reserve_hash]
        for one in parse_ledger_lines(lines)
        if isinstance(one, CommitEntry)
    }


def test_the_traffic_that_a_dry_run_tells_is_what_a_site_has(finished):
    out, _ = finished
    root = out / "coordinator"
    plan = parse_plan((root / "state" / "plan.json").read_bytes())
    size = len(pool_bytes(read_pool(root / "pool.jsonl")))
    told = outlook_of(plan, sites=SITES, pool_bytes=size).traffic
    for site in ("site-a", "site-b", "site-c"):
        lines = (out / site / "state" / "events.jsonl").read_bytes().splitlines()
        found = next(one for line in lines if (one := json.loads(line))["event"] == "traffic")
        assert found["bytes_up"] == pytest.approx(told.up_bytes, rel=0.05)
        assert found["bytes_down"] == pytest.approx(told.down_bytes, rel=0.10)


def test_the_run_prints_one_json_report_and_writes_it_beside_the_page(finished):
    out, done = finished
    printed = json.loads(done.stdout)
    assert (
        printed["schema_version"] == json.loads((out / "report.json").read_text())["schema_version"]
    )
    assert (out / "report.html").stat().st_size > 10_000
    assert {site["party"] for site in printed["sites"]} == {"site-a", "site-b", "site-c"}
    for site in printed["sites"]:
        assert len(site["accuracy"]) == 3
        assert 0.0 < site["epsilon_spent"] <= site["epsilon_cap"]
        assert len(site["allocation"]) == 2


def test_no_site_of_a_healthy_study_falls_back(finished):
    out, _ = finished
    for name in ("site-a", "site-b", "site-c"):
        told = [json.loads(path.read_bytes()) for path in kept(out / name).glob("allocation-*")]
        assert len(told) == 2
        assert not any("fallback" in one for one in told)
        assert any(cell["picked"] for one in told for cell in one["cells"])


def test_every_opened_sum_is_exactly_the_sum_of_the_noised_vectors(finished):
    out, _ = finished
    sites = sorted(out.glob("site-*"))
    assert len(sites) == SITES
    for round_id in range(2):
        noised = [
            json.loads(stored_outputs(site)[(round_id, "statistics", 0)])["vector"]
            for site in sites
        ]
        opened = json.loads(
            (out / "export" / "openings" / f"{round_id}-statistics.json").read_text()
        )
        assert opened == np.sum(noised, axis=0).tolist()
        picks = [
            json.loads((kept(site) / "site-state.json").read_text())["picks"][str(round_id)]
            for site in sites
        ]
        demand = json.loads((out / "export" / "openings" / f"{round_id}-demand.json").read_text())
        assert (
            demand == np.bincount(np.concatenate(picks).astype(int), minlength=len(demand)).tolist()
        )
        assert sum(demand) > 0


def kept(site):
    """What a site keeps of its one study."""
    return find_study_folder(site / "state", None)


def llm_updates(out):
    """The published decisions about the LLM, by round."""
    roster = parse_roster((out / "export" / "roster.json").read_bytes())
    lines = (out / "export" / "messages.jsonl").read_bytes().splitlines()
    found = [envelope_from_line(line, roster=roster) for line in lines]
    updates = [one for one in found if one.kind is Kind.LLM_UPDATE]
    return {one.header.round_id: parse_body(one, LlmUpdateBody) for one in updates}


def test_the_opened_advantages_are_exactly_the_sum_of_what_the_sites_computed(finished):
    out, _ = finished
    plan = parse_plan((out / "export" / "plan.json").read_bytes())
    for round_id in range(2):
        sent = [
            json.loads((kept(site) / "site-state.json").read_text())["excess"][str(round_id)]
            for site in sorted(out.glob("site-*"))
        ]
        opened = json.loads(
            (out / "export" / "openings" / f"{round_id}-advantage.json").read_text()
        )
        assert opened == np.sum(sent, axis=0).tolist()
        assert sum(opened) > 0
        assert not any(opened[one] for one in split_pool(plan).holdout)


def test_the_llm_changes_only_where_the_hold_out_agreed(finished):
    out, done = finished
    updates = llm_updates(out)
    assert sorted(updates) == [0, 1]
    version = NO_ADAPTERS
    for round_id, update in sorted(updates.items()):
        assert update.llm_before == version
        better = (
            update.right_after >= update.right_before
            and update.certainty_after > update.certainty_before
        )
        assert update.accepted == (update.used > 0 and better)
        assert (update.llm_after != version) == update.accepted
        version = update.llm_after
        shown = json.loads(done.stdout)["uplink"][round_id]
        assert (shown["round"], shown["accepted"], shown["llm"]) == (
            round_id,
            update.accepted,
            update.llm_after,
        )
    kept = {path.stem for path in (out / "coordinator" / "state").glob("llm/*.safetensors")}
    assert kept == {update.llm_after for update in updates.values() if update.accepted}


def test_the_ledgers_hold_the_epsilon_of_the_report(finished):
    out, done = finished
    verdict = verify_evidence(read_evidence(out))
    assert verdict.good, verdict.faults
    assert (verdict.rounds, verdict.openings) == (2, 6)
    for site in json.loads(done.stdout)["sites"]:
        summary = verdict.ledgers[site["party"]]
        assert site["epsilon_spent"] == pytest.approx(summary.epsilon, abs=1e-4)


def test_a_site_exports_the_very_ledger_that_the_auditor_holds(finished, tmp_path):
    out, _ = finished
    target = tmp_path / "ledger.jsonl"
    done = lada(
        "site", "ledger", "--settings", str(out / "site-a" / "site.toml"),
        "--out", str(target), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == (out / "export" / "ledgers" / "site-a.jsonl").read_bytes()
    summary = verify_evidence(read_evidence(out)).ledgers["site-a"]
    assert json.loads(done.stdout)["epsilon"] == pytest.approx(summary.epsilon, abs=1e-9)


def test_verify_accepts_the_untouched_run(finished):
    out, _ = finished
    done = lada("audit", "verify", str(out))
    assert done.returncode == 0, done.stdout
    assert "all good" in done.stdout


@pytest.mark.parametrize("kind", ["ledgers", "openings", "transcripts"])
def test_verify_names_a_file_in_which_one_byte_was_changed(finished, kind, tmp_path):
    out, _ = finished
    files = read_evidence(out)
    name = sorted(one for one in files if one.startswith(f"{kind}/"))[-1]
    for path, content in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    changed = bytearray(files[name])
    changed[len(changed) // 2] ^= 1
    (tmp_path / name).write_bytes(changed)
    done = lada("audit", "verify", str(tmp_path))
    assert done.returncode == 1
    assert name in done.stdout


def test_any_changed_byte_of_ledger_opening_or_transcript_is_a_fault(finished):
    out, _ = finished
    files = read_evidence(out)
    # A drawn byte of every file, and the first and the last one of one file of every kind.
    drawn = random.Random(SEED)
    print("seed", SEED)
    places = []
    for kind in ("ledgers", "openings", "transcripts"):
        names = sorted(name for name in files if name.startswith(f"{kind}/"))
        places += [(names[0], 0), (names[0], len(files[names[0]]) - 1)]
        places += [(name, drawn.randrange(len(files[name]))) for name in names]
    for name, place in places:
        changed = bytearray(files[name])
        changed[place] ^= 1 << drawn.randrange(8)
        verdict = verify_evidence({**files, name: bytes(changed)})
        assert not verdict.good, f"{name}, byte {place}"
        assert any(name in fault for fault in verdict.faults), (name, place, verdict.faults)


def test_a_missing_file_and_a_foreign_file_are_faults(finished):
    out, _ = finished
    files = read_evidence(out)
    for name in files:
        if name.count("/"):
            without = {path: content for path, content in files.items() if path != name}
            assert any(name in fault for fault in verify_evidence(without).faults)
    assert not verify_evidence({**files, "openings/7-demand.json": b"[]"}).good


def test_private_keys_and_ledgers_are_readable_by_their_owner_only(finished):
    out, _ = finished
    secrets = [
        *out.glob("*/identity/*.key"),
        *out.glob("*/state/secrets/*"),
        *out.glob("*/state/studies/*/secrets/*"),
        *out.glob("auditor/state/keys/*"),
        *out.glob("*/state/ledger-*.sqlite"),
    ]
    assert len(secrets) > 3 * SITES
    assert [path for path in secrets if path.stat().st_mode & 0o077] == []


def test_no_process_of_the_run_is_left(finished):
    out, _ = finished
    commands = {one.pid: " ".join(one.info["cmdline"] or ()) for one in process_iter(["cmdline"])}
    own = os.getpid()
    assert [line for pid, line in commands.items() if str(out) in line and pid != own] == []


def test_masks_are_forgotten_once_the_study_is_over(finished):
    out, _ = finished
    plan = parse_plan((out / "export" / "plan.json").read_bytes())
    assert plan.rounds == 2
    assert list(out.glob("site-*/state/**/secrets/mask-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("sites", [5, 8])
def test_larger_federations_finish_too(sites, tmp_path):
    out = tmp_path / "run"
    done = lada(
        "mock", "run", "--preset", "tiny", "--sites", str(sites), "--rounds", "1",
        "--out", str(out), "--json", timeout_s=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert verify_evidence(read_evidence(out)).good
    assert len(json.loads(done.stdout)["sites"]) == sites


@pytest.mark.slow
def test_sites_with_guides_learn_from_the_paths_that_their_guides_let_pass(tmp_path):
    out = tmp_path / "run"
    done = lada("mock", "run", "--preset", "chains", "--out", str(out), "--json", timeout_s=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert verify_evidence(read_evidence(out)).good
    plan = parse_plan((out / "export" / "plan.json").read_bytes())
    assert plan.guide is not None
    assert plan.guide.trials is not None
    for site in json.loads(done.stdout)["sites"]:
        state = kept(out / site["party"])
        judged = json.loads((state / "site-state.json").read_bytes())["rationales"]
        assert len({one["gain"] for one in judged}) > len(judged) // 2
        # The last round goes on from the student, with the guide of the round before as judge.
        references = [
            (state / f"dp-reference-round-{round_id}.safetensors").read_bytes()
            for round_id in range(plan.rounds)
        ]
        assert references[-1] == references[-2]
        assert len(set(references)) == plan.rounds - 1
        for round_id, guide in enumerate(references):
            student = (state / f"adapters-round-{round_id}.safetensors").read_bytes()
            assert guide != student
        # Every round's valuations are paid for, and say from then on which cells suit the records.
        lines = (out / "export" / "ledgers" / f"{site['party']}.jsonl").read_text(encoding="utf-8")
        paid = [json.loads(line) for line in lines.splitlines()]
        assert [
            one["round_id"]
            for one in paid
            if (one.get("kind"), one.get("purpose")) == ("reserve", "trials")
        ] == list(range(plan.rounds))
        first, *later = site["allocation"]
        assert {cell["agreement"] for cell in first["cells"]} == {None}
        assert all(0.0 <= cell["agreement"] <= 1.0 for one in later for cell in one["cells"])
        # No noise of its own: a guide costs what the same training costs without one.
        assert site["epsilon"][-1]["epsilon"] <= plan.privacy.epsilon_cap


@pytest.mark.slow
def test_choosing_by_what_the_slm_lacks_beats_quotas_by_topic_and_chance(tmp_path):
    """The preset chains on a seed of its own. Means over many worlds are on the results' pages."""
    out = tmp_path / "run"
    done = lada(
        "mock", "run", "--preset", "chains", "--seed", "4711", "--out", str(out), "--json",
        "--against", "domain", "--against", "random", timeout_s=2700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_bytes())
    differences = {
        one["other"]: one["difference"] for one in report["against"] if one["site"] == "all sites"
    }
    assert differences["domain"] > 0.03
    assert differences["random"] > 0.03
    for name in differences:
        rival = out / f"against-{name}"
        assert verify_evidence(read_evidence(rival)).good
        spent = json.loads((rival / "report.json").read_bytes())["sites"]
        assert all(site["epsilon_spent"] <= site["epsilon_cap"] for site in spent)
