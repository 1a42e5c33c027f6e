"""From outcomes to figures: means, intervals, paired differences and plot."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lada_lab.arms.plot import accuracy_plot
from lada_lab.arms.results import paired, summary, t_interval, tabulate
from lada_lab.arms.simulation import Outcome


def outcome(
    condition: str,
    seed: int,
    accuracy: float,
    *,
    epsilon: float = 8.0,
    llm: tuple[float, float] = (0.7, 0.7),
    transfers: tuple[dict[str, int | bool], ...] = (),
) -> Outcome:
    report = {
        "asked": 12, "received": 11, "received_harmful": 3, "trained": 8, "trained_harmful": 2,
    }  # fmt: skip
    return Outcome(
        condition=condition,
        epsilon=epsilon,
        seed=seed,
        accuracy=accuracy,
        by_site=(accuracy - 0.1, accuracy + 0.1),
        llm_before=llm[0],
        llm_accuracy=llm[1],
        spent=7.9,
        cpu_s=4.0,
        alone_s=10.0,
        details={"site-a": [report], "site-b": [report]},
        transfers=transfers,
    )


STUDY = [
    outcome("random", 1, 0.2),
    outcome("random", 2, 0.4),
    outcome("lada-secure", 1, 0.7),
    outcome("lada-secure", 2, 0.8),
    outcome("lada-secure", 2, 0.5, epsilon=1.0),
    outcome("fedmkt", 1, 0.3, llm=(0.7, 0.6)),
    outcome("lada-fedmkt", 1, 0.6, llm=(0.7, 0.75)),
    outcome("lada-transfer", 1, 0.7, llm=(0.7, 0.8), transfers=({"asked": 4, "accepted": True},)),
    outcome("lada-transfer", 2, 0.7, llm=(0.6, 0.8), transfers=({"asked": 6, "accepted": False},)),
]


def test_the_interval_is_that_of_students_t() -> None:
    # t(0.975, 2) = 4.302653; the standard deviation of 1, 2, 3 is 1.
    low, high = t_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert t_interval([1.0]) is None
    assert summary([0.5]) == {"mean": 0.5, "sd": None, "interval": None}


def test_differences_are_paired_by_seed() -> None:
    found = paired({1: 0.7, 2: 0.8, 3: 0.9}, {1: 0.2, 2: 0.4, 4: 0.0})
    assert (found["mean"], found["seeds"]) == (0.45, 2)
    assert paired({1: 0.5}, {2: 0.5})["mean"] is None


def test_the_report_has_the_fields_that_readers_rely_on() -> None:
    found = tabulate(STUDY, largest=8.0)
    assert found["accuracy"]["random"]["mean"] == pytest.approx(0.3)
    assert found["accuracy"]["lada-secure@1"]["mean"] == 0.5
    assert found["difference"]["lada-secure"]["random"]["mean"] == pytest.approx(0.45)
    assert found["llm_gain"]["lada-transfer"]["mean"] == pytest.approx(0.15)
    assert found["llm_gain"]["lada-fedmkt"]["mean"] == pytest.approx(0.05)
    assert set(found["llm_gain"]) == {"lada-transfer", "fedmkt", "lada-fedmkt"}
    assert found["transfer"] == {"lada-transfer": {"asked": 5.0, "accepted": 0.5}}
    assert found["samples"]["random"]["trained_harmful"] == 2.0
    assert found["cpu_s"]["random"] == 10.0
    assert found["spent"]["random"] == 7.9
    assert found["by_seed"]["random"] == {"1": 0.2, "2": 0.4}


def test_what_is_not_private_is_said_to_be_and_has_no_epsilon() -> None:
    bare = replace(outcome("oracle", 1, 0.9), spent=math.inf)
    found = tabulate([*STUDY, bare], largest=8.0)
    assert found["not_private"] == ["oracle"]
    assert found["spent"]["oracle"] is None
    # A JSON of numbers alone, without an infinity that no other reader knows.
    json.dumps(found, allow_nan=False)


def test_lada_in_front_of_a_baseline_is_compared_with_that_baseline_alone() -> None:
    found = tabulate(STUDY, largest=8.0)["difference"]
    assert set(found["lada-fedmkt"]) == {"fedmkt"}
    assert found["lada-fedmkt"]["fedmkt"]["mean"] == pytest.approx(0.3)
    assert "fedmkt" not in found
    assert "random" not in found


def test_draws_of_one_world_count_as_their_mean() -> None:
    drawn = [outcome("random", 1, 0.2), outcome("random", 1, 0.4), outcome("random", 2, 0.6)]
    found = tabulate(drawn, largest=8.0)
    assert found["by_seed"]["random"] == {"1": 0.3, "2": 0.6}
    assert found["accuracy"]["random"]["mean"] == pytest.approx(0.45)


def test_the_plot_has_a_bar_and_a_name_for_every_condition() -> None:
    accuracy = tabulate(STUDY, largest=8.0)["accuracy"]
    drawn = ElementTree.fromstring(accuracy_plot(accuracy, title="a < b"))  # noqa: S314 (our own)
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b" in texts
    assert set(accuracy) <= set(texts)
    groups = {one.get("id") for one in drawn.iter("{http://www.w3.org/2000/svg}g")}
    assert {f"condition {name}" for name in accuracy} <= groups
    means = [f"{found['mean']:.1%}" for found in accuracy.values()]
    assert [text for text in texts if text in means] == means
    assert accuracy_plot(accuracy, title="a < b") == accuracy_plot(accuracy, title="a < b")
