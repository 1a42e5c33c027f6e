"""The same sites in one study after the other: one ledger, one budget, whatever happens to it."""

import json
import shutil

import pytest
from next_studies import NextStudies, put_back, set_value

# A study of 1 round costs epsilon 2.08 here, one more of 2 rounds makes it 2.93 and a third 3.57.
CAP = 3.2


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Before the first study."""
    made = NextStudies(tmp_path_factory.mktemp("studies") / "run")
    made.cap(CAP)
    return made


def statuses(ended):
    return {party: status for party, (status, _) in ended.items()}


def everybody(status):
    return dict.fromkeys(("coordinator", "auditor", "site-a", "site-b", "site-c"), status)


def spent(studies, site="site-a"):
    done = studies.lada(
        "site", "ledger", "--settings", studies.layout.site(site).settings, "--json"
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_budget_over_studies_state_folders_and_keys(studies, tmp_path):
    state = studies.layout.site("site-a").state

    # Studies 1 and 2, the second with another model and other rounds.
    studies.propose(rounds=1)
    first = studies.run()
    assert statuses(first) == everybody(0), first
    assert "A NEW LEDGER starts for the population" in first["site-a"][1]
    assert "site-a starts a new ledger with the whole budget" in first["auditor"][1]
    after_first = spent(studies)
    backup = tmp_path / "after-study-1"
    shutil.copytree(state, backup)

    studies.propose(rounds=2, slm="tiny-slm-3-0")
    second = studies.run()
    assert statuses(second) == everybody(0), second
    assert "NEW LEDGER" not in second["site-a"][1]
    after_second = spent(studies)
    assert after_first["epsilon"] < after_second["epsilon"] <= CAP
    assert [one["study_id"] for one in after_second["studies"]] == ["study-1", "study-2"]
    assert len(list((state / "studies").iterdir())) == 2
    exports = [studies.export(1), studies.export(2)]
    done = studies.lada("audit", "verify", *exports, "--json")
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)["populations"]
    assert [one["site"] for one in told] == ["site-a", "site-b", "site-c"]
    assert told[0]["epsilon"] == pytest.approx(after_second["epsilon"])

    # Study 3 would pass the budget: refused, and nothing is reserved.
    studies.propose(rounds=2)
    third = studies.run()
    assert statuses(third) == everybody(1), third
    words = (
        f"of {CAP} over all studies is spent on site-a.records, and with the whole of this study"
    )
    assert words in third["site-a"][1]
    assert "3 are needed" in third["coordinator"][1]
    assert spent(studies)["reservations"] == after_second["reservations"]
    studies.cap(20)

    # The state as it was after study 1.
    newest = tmp_path / "newest"
    shutil.copytree(state, newest)
    put_back(backup, state)
    studies.propose()
    fourth = studies.run()
    assert statuses(fourth) == everybody(1), fourth
    assert "an old copy of the ledger was put back" in fourth["site-a"][1]
    assert "an old copy of the ledger was put back" in fourth["coordinator"][1]
    assert spent(studies)["reservations"] == after_first["reservations"]

    # A new state folder.
    put_back(newest, state)
    set_value(studies.layout.site("site-a").settings, "state_dir", "another-state")
    studies.propose()
    fifth = studies.run()
    assert statuses(fifth) == everybody(1), fifth
    assert "A NEW LEDGER starts" in fifth["site-a"][1]
    assert "a new state folder has a new ledger" in fifth["site-a"][1]
    assert spent(studies)["reservations"] == 0
    set_value(studies.layout.site("site-a").settings, "state_dir", "state")

    # A new key goes on with the ledger once both have signed.
    old = studies.renew_identity("site-a")
    settings = studies.layout.site("site-a").settings
    studies.propose()
    done = studies.lada(
        "site", "renew-key", "--settings", settings, "--old-identity", old, "--by", "dr-meyer"
    )
    assert done.returncode == 0, done.stderr
    assert "dr-meyer renewed the signing key" in done.stdout
    sixth = studies.run()
    assert statuses(sixth) == everybody(0), sixth

    # The ledger is lost for good; two people restart it.
    before = spent(studies)
    (state / "ledger-site-a.records.sqlite").rename(tmp_path / "lost.sqlite")
    for more in state.glob("ledger-*.sqlite-*"):
        more.unlink()
    grant = tmp_path / "grant.json"
    done = studies.lada(
        "auditor", "grant-restart", "--settings", studies.layout.auditor.settings,
        "--site", "site-a", "--population", "site-a.records",
        "--requested-by", "dr-meyer", "--by", "dr-weber", "--out", grant,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    restart = ("site", "restart-ledger", "--settings", settings, "--grant", grant, "--by")
    assert studies.lada(*restart, "somebody-else").returncode == 2
    done = studies.lada(*restart, "dr-meyer")
    assert done.returncode == 0, done.stderr
    assert "IT WAS RESTARTED in place of the lost ledger" in done.stdout
    again = studies.lada(*restart, "dr-meyer")
    assert again.returncode == 2
    assert "there is a ledger of population site-a.records" in again.stderr
    studies.propose()
    seventh = studies.run()
    assert statuses(seventh) == everybody(0), seventh
    assert spent(studies)["epsilon"] > before["epsilon"]

    exports = [studies.export(number) for number in (1, 2, 6, 7)]
    done = studies.lada("audit", "verify", *exports, "--json")
    assert done.returncode == 0, done.stdout
    told = {one["site"]: one for one in json.loads(done.stdout)["populations"]}
    assert len(told) == 3
    assert told["site-a"]["epsilon"] == pytest.approx(spent(studies)["epsilon"])
    assert told["site-a"]["restart"]["carried_epsilon"] == pytest.approx(before["epsilon"])
    assert told["site-a"]["restart"]["granted_by"] == "dr-weber"
    # The failed studies have evidence too, and it says so.
    done = studies.lada("audit", "verify", studies.export(4))
    assert done.returncode == 1
    assert "the study failed" in done.stdout
    assert "all good" not in done.stdout
