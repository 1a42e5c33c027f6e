"""What is run, what is left of it after an interruption, and what tells two plans apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench_runs import made_up_run

from lada_lab.arms import program
from lada_lab.arms.arms import arms_named
from lada_lab.arms.bench_plan import BenchPlan
from lada_lab.arms.grid import Point
from lada_lab.arms.run_file import Runs
from lada_lab.arms.study import LabSettings
from lada_secure.errors import ParameterError

HERE = Path()


def plan(
    *names: str, seeds: tuple[int, ...] = (4, 5), epsilons: tuple[float, ...] = (8.0,),
    draws: int = 1, points: tuple[Point, ...] = ((),),
) -> BenchPlan:  # fmt: skip
    return BenchPlan(
        arms=arms_named(names),
        seeds=seeds,
        epsilons=epsilons,
        draws=draws,
        points=dict.fromkeys(points, LabSettings()),
    )


def test_tasks_share_a_world_and_ablations_run_at_the_largest_epsilon_alone() -> None:
    wanted = plan("random", "lada-secure", "no-screen", epsilons=(1.0, 8.0), draws=2)
    tasks = wanted.tasks(Runs(), HERE)
    found = {
        (one.seed, one.epsilon, one.draw.number): [arm.name for arm in one.draw.arms]
        for one in tasks
    }
    assert len(found) == len(tasks) == 8
    for number in (1, 2):
        assert found[5, 8.0, number] == ["random", "lada-secure", "no-screen"]
        assert found[5, 1.0, number] == ["random", "lada-secure"]


def test_every_world_is_run_before_a_second_draw_of_any() -> None:
    tasks = plan("random", epsilons=(1.0, 8.0), draws=2).tasks(Runs(), HERE)
    assert [(one.draw.number, one.epsilon, one.seed) for one in tasks] == [
        *((1, 8.0, 4), (1, 8.0, 5), (1, 1.0, 4), (1, 1.0, 5)),
        *((2, 8.0, 4), (2, 8.0, 5), (2, 1.0, 4), (2, 1.0, 5)),
    ]


def test_what_is_there_is_not_run_again() -> None:
    points: tuple[Point, ...] = ((("a", "1"),), (("a", "2"),))
    wanted = plan("random", "paper", draws=2, points=points)
    runs = Runs()
    for seed, names in ((4, ("random", "paper")), (5, ("random",))):
        for name in names:
            runs.keep(made_up_run(name, seed, [0.5], draw=2, point=points[1]), None)
    left = [
        (one.draw.number, one.seed, one.point[0][1], [arm.name for arm in one.draw.arms])
        for one in wanted.tasks(runs, HERE)
    ]
    assert left == [
        (1, 4, "1", ["random", "paper"]),
        (1, 4, "2", ["random", "paper"]),
        (1, 5, "1", ["random", "paper"]),
        (1, 5, "2", ["random", "paper"]),
        (2, 4, "1", ["random", "paper"]),
        (2, 5, "1", ["random", "paper"]),
        (2, 5, "2", ["paper"]),
    ]


def test_nothing_is_left_of_what_is_complete() -> None:
    runs = Runs()
    for seed in (4, 5):
        runs.keep(made_up_run("random", seed, [0.5]), None)
    assert plan("random").tasks(runs, HERE) == []


def test_runs_are_put_in_the_order_of_the_plan() -> None:
    wanted = plan("random", "paper", epsilons=(1.0, 8.0))
    runs = Runs()
    mixed = [("paper", 4, 8.0), ("random", 5, 1.0), ("random", 5, 8.0), ("random", 4, 8.0)]
    for name, seed, epsilon in mixed:
        runs.keep(made_up_run(name, seed, [0.5], epsilon=epsilon), None)
    runs.arrange(wanted.order)
    found = [(key.condition, key.seed, key.epsilon) for key in runs.known]
    assert found == [mixed[3], mixed[2], mixed[1], mixed[0]]


@pytest.mark.parametrize(
    ("seeds", "epsilons", "draws"),
    [
        ((), (8.0,), 1),
        ((-1,), (8.0,), 1),
        ((1,), (), 1),
        ((1,), (0.0,), 1),
        ((1,), (8.0, float("nan")), 1),
        ((1,), (8.0,), 0),
    ],
)
def test_no_seed_no_epsilon_or_no_draw_is_refused(
    seeds: tuple[int, ...], epsilons: tuple[float, ...], draws: int
) -> None:
    with pytest.raises(ParameterError):
        plan("random", seeds=seeds, epsilons=epsilons, draws=draws)


def test_a_description_tells_everything_apart_that_changes_a_run() -> None:
    usual = plan("random", "lada-secure")
    told = usual.description("tiny")
    others = (
        plan("random", "paper"),
        plan("random", "lada-secure", seeds=(4, 6)),
        plan("random", "lada-secure", epsilons=(1.0,)),
        plan("random", "lada-secure", draws=2),
        plan("random", "lada-secure", points=((("a", "1"),), (("a", "2"),))),
        replace(usual, points={(): LabSettings(batch_size=3)}),
        # An arm that is called the same and does something else.
        replace(usual, arms=(replace(usual.arms[0], changes={"rounds": 2}), usual.arms[1])),
    )
    assert all(other.description("tiny") != told for other in others)
    assert plan("random", "lada-secure").description("tiny") == told


def test_the_digest_of_the_program_is_over_all_that_makes_a_run() -> None:
    once = program.program_sha256()
    assert program.program_sha256() == once
    here = Path(program.__file__).parent
    assert {one.stem for one in here.glob("*.py")} >= program._REPORTING
    # What makes a run imports nothing that is left out of the digest, but for storing it.
    for name in ("simulation", "rounds", "llm", "ledgers", "study", "arms", "baseline_rounds"):
        text = (here / f"{name}.py").read_text(encoding="utf-8")
        assert not [one for one in program._REPORTING if f"lada_lab.arms.{one} " in text]
