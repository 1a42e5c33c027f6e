"""Rounds of the two baselines in the simulation, beyond what one site does alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.party import Party
from lada_lab.baselines.adapter_sums import (
    AdapterSumSettings,
    adapter_vector,
    mean_adapters,
)
from lada_lab.baselines.baseline import BaselineState
from lada_lab.baselines.fedcollm import FedCoLlmBaseline
from lada_lab.baselines.fedmkt import FedMktBaseline
from lada_lab.baselines.logit_baseline import LogitBaseline
from lada_lab.baselines.rounds import BaselineTraining, transfer
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.loading import LanguageModel

_HOSTS: dict[str, type[LogitBaseline]] = {"fedmkt": FedMktBaseline, "fedcollm": FedCoLlmBaseline}


def open_baseline(name: str, coordinator: Coordinator, slm: LanguageModel) -> LogitBaseline:
    """The baseline of one arm. Raises: ParameterError: tokenizers without a common token."""
    return _HOSTS[name](coordinator.data.pool, llm=coordinator.llm, slm=slm)


def separate_rounds(
    host: LogitBaseline,
    coordinator: Coordinator,
    parties: Sequence[Party],
    received: Sequence[Mapping[int, str]],
    *,
    round_id: int,
) -> None:
    """FedMKT: each site learns from the LLM, and the LLM from the best site per sample.

    The LLM's owner sends what is in demand to all, so that every site answers for every sample
    and none shows what it asked for.
    """
    for party, paths in zip(parties, received, strict=True):
        party.train(round_id, paths)
    paths = {place: one.path for party in parties for place, one in party.book.known.items()}
    _teach(
        host,
        coordinator,
        [partial(_ready, party.lm, party.student) for party in parties],
        paths,
        parties[0],
        round_id=round_id,
    )


def shared_round(
    host: LogitBaseline,
    coordinator: Coordinator,
    parties: Sequence[Party],
    received: Sequence[Mapping[int, str]],
    *,
    round_id: int,
) -> None:
    """FedCoLLM: the sum of the sites' adapters, distilled mutually with the LLM.

    A path is used where at least half of the sites that know it would train on it. Only these
    counts are needed, so they can come from an opened sum as demand does.
    """
    kept = [party.consider(round_id, paths) for party, paths in zip(parties, received, strict=True)]
    knowing = Counter(place for party in parties for place in party.book.known)
    votes = Counter(place for places in kept for place in places)
    paths = {
        place: one.path
        for party in parties
        for place, one in party.book.known.items()
        if 2 * votes[place] >= knowing[place]
    }
    lm = parties[0].lm
    load_adapters(lm, added_up([party.start(round_id) for party in parties]))
    training = parties[0].baseline_training(round_id)
    done = transfer(
        host,
        lm,
        BaselineState(),
        paths,
        BaselineTraining(
            # As many steps as all sites together take on their own.
            steps=training.steps * len(parties),
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            seed=training.seed,
        ),
    )
    shared = adapter_weights(lm)
    _teach(host, coordinator, [partial(_ready, lm, shared)], paths, parties[0], round_id=round_id)
    for party, places, new in zip(parties, kept, received, strict=True):
        party.student = shared
        party.close(round_id, new, places, by_host=done.rewards)


def added_up(shares: Sequence[AdapterWeights]) -> AdapterWeights:
    """The mean of the sites' adapters, in the whole numbers of a secure aggregation."""
    settings = AdapterSumSettings()
    total = np.sum([adapter_vector(one, settings) for one in shares], axis=0)
    return mean_adapters(total, sites=len(shares), like=shares[0], settings=settings)


def _ready(lm: LanguageModel, student: AdapterWeights) -> LanguageModel:
    load_adapters(lm, student)
    return lm


def _teach(
    host: LogitBaseline,
    coordinator: Coordinator,
    students: Sequence[Callable[[], LanguageModel]],
    paths: Mapping[int, str],
    party: Party,
    *,
    round_id: int,
) -> None:
    training = party.baseline_training(round_id)
    taught = host.teach_llm(
        students,
        paths,
        BaselineTraining(
            steps=party.settings.uplink_steps,
            batch_size=training.batch_size,
            learning_rate=party.settings.uplink_learning_rate,
            seed=training.seed,
        ),
    )
    if taught:
        coordinator.forget()
