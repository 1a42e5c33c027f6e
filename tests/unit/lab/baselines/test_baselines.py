"""FedMKT and FedCoLLM through the interface that LaDa uses, on models of a few thousand weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tiny_baselines import CHARACTERS, lm_with_tokens, pool_of

from lada_lab.baselines.baseline import DualLosses, Host, check_pool
from lada_lab.baselines.fedcollm import FedCoLlmHost
from lada_lab.baselines.fedmkt import FedMktHost
from lada_lab.baselines.logit_baseline import LogitHost, LogitSettings
from lada_lab.baselines.rounds import HostTraining, train_host, transfer
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.loading import LanguageModel

POOL = pool_of("1a", "2b", "3c", "4de")
PATHS = {0: "a4\n4", 1: "b9\n9", 2: "c0\n0", 3: "d1e2\n2"}
TRAINING = HostTraining(steps=30, batch_size=2, learning_rate=3e-2)


def models() -> tuple[LanguageModel, LanguageModel]:
    return (
        lm_with_tokens("llm", CHARACTERS, seed=1, width=32, adapters=True),
        lm_with_tokens("slm", CHARACTERS, seed=2, adapters=True),
    )


def opened(kind: type[LogitHost]) -> tuple[LogitHost, LanguageModel, LanguageModel]:
    llm, slm = models()
    return kind(POOL, llm=llm, slm=slm, settings=LogitSettings(k=4)), llm, slm


def test_losses_are_the_cross_entropy_of_the_same_texts_under_both_models() -> None:
    host, llm, slm = opened(FedMktHost)
    found = host.losses(slm, PATHS)
    for lm, losses in ((llm, found.llm), (slm, found.slm)):
        for loss, (place, path) in zip(losses, PATHS.items(), strict=True):
            ids = torch.tensor(
                [lm.encode_prompt(POOL[place].question + "\n") + lm.encode_path(path)]
            )
            kept = len(lm.encode_path(path))
            with torch.no_grad():
                logits = lm.model(input_ids=ids).logits[0, -kept - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, ids[0, -kept:])
            assert loss == pytest.approx(float(expected), rel=1e-4)


def test_fedmkt_sends_only_what_the_llm_knows_better() -> None:
    """Dual minimum cross-entropy, Fan et al. 2024."""
    host, _, slm = opened(FedMktHost)
    losses = DualLosses(slm=np.array([1.0, 1.0, 2.0, 0.5]), llm=np.array([0.5, 1.0, 3.0, 0.1]))
    assert losses.llm_is_better.tolist() == [True, False, False, True]
    assert [one.place for one in host.payload(slm, PATHS, losses)] == [0, 3]
    assert host.payload(slm, {}, DualLosses(slm=np.zeros(0), llm=np.zeros(0))) == ()


def test_fedcollm_sends_everything() -> None:
    host, _, slm = opened(FedCoLlmHost)
    losses = DualLosses(slm=np.zeros(4), llm=np.ones(4))
    assert [one.place for one in host.payload(slm, PATHS, losses)] == [0, 1, 2, 3]


def test_losses_of_different_lengths_are_refused() -> None:
    with pytest.raises(ParameterError):
        DualLosses(slm=np.zeros(2), llm=np.zeros(3))


@pytest.mark.parametrize("kind", [FedMktHost, FedCoLlmHost])
def test_a_round_trains_the_student_and_leaves_the_llm(kind: type[LogitHost]) -> None:
    host, llm, slm = opened(kind)
    teacher, before = adapter_weights(llm), host.losses(slm, PATHS).slm
    sent = transfer(host, slm, PATHS, TRAINING)
    assert set(sent) <= set(PATHS)
    assert kind is FedMktHost or sent == tuple(PATHS)
    assert host.losses(slm, PATHS).slm.mean() < before.mean()
    assert adapter_weights(llm) == teacher
    assert transfer(host, slm, {}, TRAINING) == ()


def test_in_fedmkt_the_best_student_teaches_the_llm_what_it_knows_better() -> None:
    host, llm, slm = opened(FedMktHost)
    one = {0: PATHS[0]}
    start, first = adapter_weights(slm), host.losses(slm, one)
    # A student that has learned the sample elsewhere.
    everything = FedCoLlmHost(POOL, llm=llm, slm=slm)
    train_host(host, slm, everything.payload(slm, one, first), TRAINING)
    learned = adapter_weights(slm)
    asked: list[str] = []

    def student(name: str, weights: AdapterWeights) -> LanguageModel:
        asked.append(name)
        load_adapters(slm, weights)
        return slm

    students = [partial(student, "fresh", start), partial(student, "taught", learned)]
    assert host.teach_llm(students, one, TRAINING) == 1
    assert asked == ["fresh", "taught", "taught"]
    assert host.losses(slm, one).llm[0] < first.llm[0]
    # Now the LLM knows it better than both.
    assert host.teach_llm(students, one, TRAINING) == 0
    assert host.teach_llm([], PATHS, TRAINING) == 0
    assert host.teach_llm(students, {}, TRAINING) == 0


def test_in_fedcollm_the_llm_learns_from_the_shared_slm_on_all_samples() -> None:
    host, llm, slm = opened(FedCoLlmHost)
    before, weights = host.losses(slm, PATHS).llm, adapter_weights(llm)
    assert host.teach_llm([lambda: slm], PATHS, TRAINING) == len(PATHS)
    assert adapter_weights(llm) != weights
    assert host.losses(slm, PATHS).llm.mean() < before.mean()


def test_a_host_serves_sites_whose_slm_has_other_tokens() -> None:
    llm, _ = models()
    slm = lm_with_tokens("pairs", ["a4", "e2", *CHARACTERS], seed=3, adapters=True)
    host: Host = FedCoLlmHost(POOL, llm=llm, slm=slm)
    before = host.losses(slm, PATHS).slm
    assert transfer(host, slm, PATHS, TRAINING) == (0, 1, 2, 3)
    assert host.losses(slm, PATHS).slm.mean() < before.mean()


def test_models_whose_tokenizers_share_nothing_are_refused() -> None:
    llm, _ = models()
    with pytest.raises(ParameterError, match="share no token"):
        FedMktHost(POOL, llm=llm, slm=lm_with_tokens("runes", ["ᚠ", "ᚢ"]))


def test_a_path_longer_than_the_context_loses_its_end() -> None:
    host, _, slm = opened(FedMktHost)
    transfer(host, slm, {0: "a1" * 40}, TRAINING)


def test_a_sample_that_the_pool_does_not_have_is_refused() -> None:
    host, _, slm = opened(FedMktHost)
    with pytest.raises(ParameterError, match="no sample 4"):
        transfer(host, slm, {4: "a1"}, TRAINING)


def test_a_model_without_adapters_is_refused() -> None:
    llm, slm = models()
    host = FedCoLlmHost(POOL, llm=llm, slm=slm)
    bare = lm_with_tokens("bare", CHARACTERS, seed=2)
    with pytest.raises(ParameterError, match="no adapters"):
        transfer(host, bare, {0: PATHS[0]}, TRAINING)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ((), "at least one sample"),
        ((*POOL, POOL[0]), "'pool-0' comes 2 times"),
        ((PoolSample(sample_id="x", question="1a", choices=(), answer=" "),), "no gold answer"),
    ],
)
def test_a_pool_that_cannot_be_used_is_refused_by_name(
    pool: tuple[PoolSample, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        check_pool(pool)
    llm, slm = models()
    with pytest.raises(ParameterError, match=message):
        FedMktHost(pool, llm=llm, slm=slm)


@pytest.mark.parametrize("change", [{"k": 0}, {"batch_size": 0}, {"weight": 1.5}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        LogitSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": float("nan")}]
)
def test_training_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        HostTraining(**{"steps": 1, "batch_size": 1, "learning_rate": 0.1, **change})  # type: ignore[arg-type]
