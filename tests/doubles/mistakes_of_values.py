# ruff: noqa: E501
"""Mistakes that operators make in single values of their settings; see `mistakes`."""

from __future__ import annotations

import math
import tomllib

from mistaken_study import Study
from mistakes import (
    AUDITOR,
    IDENTITY,
    OF_AUDITOR,
    OF_HUB,
    OF_SITE,
    POLICY,
    SERVER,
    SITE,
    STUDY,
    Mistake,
    keys,
)


def _one_port(study: Study) -> None:
    listen = tomllib.loads(study.path(SERVER).read_text())["listen"]
    study.toml(SERVER, monitor=f"127.0.0.1:{listen.rpartition(':')[2]}")


def _linked_state(study: Study) -> None:
    study.path("hospital-a/linked").symlink_to(study.path(IDENTITY))
    study.toml(SITE, state_dir="linked")


VALUES = (
    Mistake(
        name="a policy that asks for more sites than there are",
        command=OF_SITE,
        check="roster",
        says="min_cohort is 9, and the roster has 3 sites",
        spoil=keys(POLICY, min_cohort=9),
    ),
    Mistake(
        name="an auditor who asks for more sites than there are",
        command=OF_AUDITOR,
        check="roster",
        says="min_cohort is 9, and the roster has 3 sites",
        spoil=keys(AUDITOR, min_cohort=9),
    ),
    Mistake(
        name="a budget in all that is below that of one study",
        command=OF_SITE,
        check="policy",
        says="epsilon_cap_total 1 is below epsilon_cap_per_study 4",
        level="warning",
        spoil=keys(POLICY, epsilon_cap_total=1.0),
    ),
    Mistake(
        name="a coordinator at port 0",
        command=OF_SITE,
        check="settings",
        says="coordinator: localhost:0: nobody can be dialled at port 0",
        spoil=keys(SITE, coordinator="localhost:0"),
    ),
    Mistake(
        name="a plan that is over before a phase can be",
        command=OF_HUB,
        check="study",
        says="valid_days is 0.001, less than one phase may take",
        spoil=keys(STUDY, valid_days=0.001),
    ),
    Mistake(
        name="a learning rate that no model survives",
        command=OF_HUB,
        check="study",
        says="distillation.learning_rate: Input should be less than or equal to 10, got '1000.0'",
        spoil=keys(STUDY, distillation={"learning_rate": 1000.0}),
    ),
    Mistake(
        name="`true` in place of a number",
        command=OF_SITE,
        check="settings",
        says="threads: Input should be a valid integer, got 'True'",
        spoil=keys(SITE, threads=True),
    ),
    Mistake(
        name="a number in quotes",
        command=OF_SITE,
        check="settings",
        says="wait_s: Input should be a valid number, got '60'",
        spoil=keys(SITE, wait_s="60"),
    ),
    Mistake(
        name="a budget without end",
        command=OF_SITE,
        check="policy",
        says="epsilon_cap_total: Input should be a finite number, got 'inf'",
        spoil=keys(POLICY, epsilon_cap_total=math.inf),
    ),
    Mistake(
        name="a policy that allows no gradients",
        command=OF_SITE,
        check="policy",
        says="pool_gradients: Tuple should have at least 1 item",
        spoil=keys(POLICY, pool_gradients=[]),
    ),
    Mistake(
        name="the state folder is the folder of the keys",
        command=OF_SITE,
        check="settings",
        says="lies in the folder of the keys; name another place",
        spoil=keys(SITE, state_dir="identity"),
    ),
    Mistake(
        name="the state folder is a link into the folder of the keys",
        command=OF_SITE,
        check="settings",
        says="hospital-a/linked lies in the folder of the keys",
        spoil=_linked_state,
    ),
    Mistake(
        name="the auditor exports into the folder of its keys",
        command=OF_AUDITOR,
        check="settings",
        says="lie in one another, and what is exported is given away; name another place",
        spoil=keys(AUDITOR, export_dir="identity/export"),
    ),
    Mistake(
        name="a key that every user of the machine may read",
        command=OF_SITE,
        check="identity",
        says="every user of this machine may read sign.key: take that away (chmod 600)",
        level="warning",
        spoil=lambda study: study.path(f"{IDENTITY}/sign.key").chmod(0o644),
    ),
    Mistake(
        name="board and monitor on one port",
        command=OF_HUB,
        check="port",
        says="; name two ports",
        spoil=_one_port,
    ),
    Mistake(
        name="a weight without end",
        command=OF_HUB,
        check="study",
        says="distillation.private_weight: Input should be a finite number, got 'inf'",
        spoil=keys(STUDY, distillation={"private_weight": math.inf}),
    ),
    Mistake(
        name="a clip norm that no step of float32 survives",
        command=OF_HUB,
        check="study",
        says="training.l2_clip_norm: Input should be less than or equal to 10000, got '1e+300'",
        spoil=keys(STUDY, training={"l2_clip_norm": 1e300}),
    ),
    Mistake(
        name="a sampling probability below any use",
        command=OF_HUB,
        check="study",
        says="training.sampling_probability: Input should be greater than or equal to 0.000000001",
        spoil=keys(STUDY, training={"sampling_probability": 1e-300}),
    ),
    Mistake(
        name="a seed that no generator takes",
        command=OF_HUB,
        check="study",
        says="seed: Input should be less than 9223372036854775808",
        spoil=keys(STUDY, seed=99_999_999_999_999_999_999),
    ),
    Mistake(
        name="a module named twice for adapters",
        command=OF_HUB,
        check="study",
        says="distillation.adapter_targets: expected names of modules, each once",
        spoil=keys(STUDY, distillation={"adapter_targets": ["q_proj", "q_proj"]}),
    ),
    Mistake(
        name="a study's name that can be none",
        command="lada site approve ../study-1 --settings hospital-a/site.toml --by Ana",
        says="expected an id of 1 to 64 letters, digits, dots, dashes and underscores, got '../study-1'",
    ),
)
