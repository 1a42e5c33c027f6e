"""People decide at their sites while the study waits: real processes, commands of their own."""

import pytest
from peoples_studies import PERSON, PeoplesStudy

# Seconds where cores are free; a machine that is busy with other things takes longer.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WHY = "The ethics board has not met; ask again in May."


def test_a_refusal_ends_at_its_site_and_its_reason_stays_there(tmp_path):
    with PeoplesStudy(tmp_path / "run", sites=3, asking=("site-b",), decide_s=3600) as study:
        study.until_it_asks("site-b")
        unread = study.decide("approve", "site-b")
        assert unread.returncode == 2
        assert "nobody has read this plan here" in unread.stderr

        settings = study.layout.site("site-b").settings
        told = study.lada("site", "show", "--settings", settings).stdout
        shown = study.shown("site-b")
        assert shown["slm"]["weights_sha256"][:12] in told
        assert f"SHA-256 {shown['pool']['sha256']}, which is what the coordinator" in told
        assert "It goes to coordinator (coordinator), auditor (auditor) and site-a, site-c" in told
        assert f"It is about {shown['people']} people here" in told
        assert shown["people"] % 10 == 0
        assert f"time is until {shown['approve_by']} (" in told
        assert f"would be epsilon {shown['budget']['epsilon_left']:.3f} of 8" in told
        assert f"The plan's SHA-256 is {shown['plan_sha256']}" in told

        changed = study.decide("approve", "site-b", "--plan", "0123456789ab")
        assert changed.returncode == 1
        assert "the coordinator has changed it" in changed.stderr
        other = study.lada("site", "approve", "other", "--settings", settings, "--by", PERSON)
        assert other.returncode == 2
        assert "the waiting plan is of study mock-tiny-7, not other" in other.stderr
        markup = study.decide("approve", "site-b", by="<b>Ana</b>")
        assert markup.returncode == 2
        early = study.decide("withdraw", "site-b")
        assert early.returncode == 1
        assert "nobody here has decided about it" in early.stderr
        assert study.shown("site-b")["standing"] == "undecided"

        refused = study.decide("refuse", "site-b", "--why", WHY)
        assert refused.returncode == 0, refused.stderr
        assert f"{PERSON} refused study mock-tiny-7" in refused.stdout
        for verb in ("refuse", "approve", "withdraw"):
            again = study.decide(verb, "site-b")
            assert again.returncode == 1, again.stderr
            assert "error (decision_refused)" in again.stderr
        ended = study.ended()
    assert {status for status, _ in ended.values()} == {1}, ended
    sentence = "a person there decided against the plan"
    assert all(sentence in said for _, said in ended.values()), ended
    assert study.decisions("site-b") == [("refuse", PERSON)]
    for site in study.layout.site_ids:
        assert study.spent(site)["epsilon"] == 0.0
    (kept,) = (study.layout.site("site-b").state / "decisions").rglob("*-refuse.json")
    assert WHY in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0
    assert study.holds(WHY, but="site-b") == []
    gone = study.decide("approve", "site-b")
    assert gone.returncode == 1
    assert "no plan waits at localhost" in gone.stderr


def test_a_deadline_that_passes_ends_a_study_that_is_too_small_without_the_site(tmp_path):
    with PeoplesStudy(tmp_path / "run", sites=3, asking=("site-c",), decide_s=30) as study:
        ended = study.ended()
    assert {status for status, _ in ended.values()} == {1}, ended
    assert (
        "2 sites take part, 3 are needed (site-c: nobody there decided in time"
        in (ended["coordinator"][1])
    )
    assert all("nobody there decided in time" in said for _, said in ended.values()), ended
    assert study.decisions("site-c") == [("refuse", "policy-of-site-c")]
    for site in study.layout.site_ids:
        assert study.spent(site)["epsilon"] == 0.0


def test_one_person_approves_another_refuses_and_the_study_goes_on_with_the_others(tmp_path):
    asking = ("site-c", "site-d")
    with PeoplesStudy(tmp_path / "run", sites=4, asking=asking, decide_s=3600) as study:
        for site in asking:
            study.until_it_asks(site)
        study.until(lambda: (study.status()["waiting"] or {}).get("until"), "nobody is waited for")
        waiting = study.status()["waiting"]
        assert set(asking) <= set(waiting["parties"])
        shown = study.shown("site-c")
        assert waiting["until"] == shown["approve_by"]

        approved = study.process(*study.words("approve", "site-c"))
        assert approved.returncode == 0, approved.stderr
        twice = study.decide("approve", "site-c")
        assert twice.returncode == 1
        assert f"was approved by {PERSON}" in twice.stderr
        assert study.shown("site-c")["standing"] == "approved"
        refused = study.decide("refuse", "site-d")
        assert refused.returncode == 0, refused.stderr
        ended = study.ended()
    assert {party: status for party, (status, _) in ended.items() if status} == {"site-d": 1}, ended
    assert study.decisions("site-c") == [("approve", PERSON)]
    assert study.decisions("site-d") == [("refuse", PERSON)]
    spent = {site: study.spent(site)["epsilon"] for site in study.layout.site_ids}
    assert spent.pop("site-d") == 0.0
    assert min(spent.values()) > 0.0
    verified = study.lada("audit", "verify", study.layout.export)
    assert verified.returncode == 0, verified.stdout


def test_a_site_that_withdraws_in_the_middle_is_left_out_and_the_others_finish(tmp_path):
    with PeoplesStudy(tmp_path / "run", sites=4, asking=("site-d",), decide_s=3600) as study:
        study.until_it_asks("site-d")
        study.shown("site-d")
        assert study.decide("approve", "site-d").returncode == 0
        study.until(lambda: study.spent("site-d")["reservations"] > 0, "site-d never spent")
        left = study.decide("withdraw", "site-d", "--why", WHY)
        assert left.returncode == 0, left.stderr
        # By this command or by the site's run, whichever comes first.
        told = ("ends with its next step and tells the others", "The others have been told that")
        assert any(said in left.stdout for said in told), left.stdout
        ended = study.ended()
    assert {party: status for party, (status, _) in ended.items() if status} == {"site-d": 1}, ended
    assert "a person there withdrew it from the study" in ended["site-d"][1]
    assert study.decisions("site-d") == [("approve", PERSON), ("withdraw", PERSON)]
    assert study.holds(WHY, but="site-d") == []
    spent = {site: study.spent(site) for site in study.layout.site_ids}
    assert spent["site-d"]["epsilon"] <= spent["site-a"]["epsilon"]
    verified = study.lada("audit", "verify", study.layout.export)
    assert verified.returncode == 0, verified.stdout
