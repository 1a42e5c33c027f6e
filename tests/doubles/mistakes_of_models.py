# ruff: noqa: E501
"""Mistakes in models, in the public pool, and in the study and its plan; see `mistakes`."""

from __future__ import annotations

import shutil

from mistaken_study import PLAN, Study
from mistakes import (
    AUDITOR,
    OF_AUDITOR_WITH_PLAN,
    OF_DRAFT,
    OF_HUB,
    OF_SITE,
    OF_SITE_WITH_PLAN,
    POLICY,
    RECORDS,
    SERVER,
    SITE,
    STUDY,
    Mistake,
    Spoil,
    content,
    gone,
    keys,
    replaced,
)

from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, ReleaseSpec

SLM = "models/small"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 178912\n"
GUIDE = {
    "records_with_reasons": True,
    "own_paths": 2,
    "least_share": 0.1,
    "rate_decay": 0.9,
    "private_share": 0.1,
    "pool_steps": 3,
    "last_pool_steps": 3,
    "pool_learning_rate": 0.001,
    "finish": True,
    "own_reasons": True,
}


def config(**changes: object) -> Spoil:
    """Changes the model's config.json."""
    return lambda study: study.json(f"{SLM}/config.json", lambda found: found.update(changes))


def sample(**changes: object) -> Spoil:
    """Changes the pool's seventh sample."""
    return lambda study: study.lines("pool.jsonl", lambda rows: rows[6].update(changes))


def plan(**changes: object) -> Spoil:
    """Changes the plan that a site is asked about."""
    return lambda study: study.plan(**changes)


def proposed(study: Study) -> None:
    """The plan was proposed, and the study file changed after that."""
    study.path("hub/state").mkdir()
    shutil.copy(study.path(PLAN), study.path("hub/state/plan.json"))
    study.toml(STUDY, paths={"budget": 90})


def spent(study: Study) -> None:
    """An earlier study has spent nearly all that the policy allows over all studies."""
    study.toml(POLICY, epsilon_cap_total=4.0)
    ledger = study.ledger()
    spec = ReleaseSpec(
        study_id="study-0",
        plan_hash="a" * 64,
        round_id=0,
        purpose="statistics",
        mechanism=DISCRETE_GAUSSIAN,
        event=GaussianEvent(1.2),
        parameters={"l2_sensitivity": 100.0, "std": 120.0},
    )
    ledger.decide(
        "approve",
        study_id="study-0",
        plan_hash="a" * 64,
        expires=study.later(days=1),
        decided_by="policy",
    )
    ledger.commit(ledger.reserve(spec), b"noised")
    ledger.close()


MODELS = (
    Mistake(
        name="a model folder beside the wrong file",
        command=OF_SITE,
        check="model.folder",
        says="there is no such folder; name one in the transformers format",
        spoil=keys(SITE, model={"slm": "models/small"}),
    ),
    Mistake(
        name="a model without its weights",
        command=OF_SITE,
        check="model.folder",
        says="has no model.safetensors and no model.safetensors.index.json",
        spoil=gone(f"{SLM}/model.safetensors"),
    ),
    Mistake(
        name="weights that were cut short",
        command=OF_SITE,
        check="model.folder",
        says="model.safetensors is cut short: expected",
        spoil=content(f"{SLM}/model.safetensors", lambda raw: raw[:-1000]),
    ),
    Mistake(
        name="weights that Git LFS has not fetched",
        command=OF_SITE,
        check="model.folder",
        says="model.safetensors is a pointer of Git LFS, not the weights; run `git lfs pull` there",
        spoil=replaced(f"{SLM}/model.safetensors", _LFS),
    ),
    Mistake(
        name="pickled weights",
        command=OF_SITE,
        check="model.folder",
        says="has pickled weights alone (pytorch_model.bin), which can run code and are never read",
        spoil=lambda study: study.path(f"{SLM}/model.safetensors").rename(
            study.path(f"{SLM}/pytorch_model.bin")
        ),
    ),
    Mistake(
        name="a model without its tokenizer",
        command=OF_SITE,
        check="model.folder",
        says="has no tokenizer.json",
        spoil=gone(f"{SLM}/tokenizer.json"),
    ),
    Mistake(
        name="a model without config.json",
        command=OF_SITE,
        check="model.folder",
        says="has no config.json",
        spoil=gone(f"{SLM}/config.json"),
    ),
    Mistake(
        name="an architecture that is not known here",
        command=OF_SITE,
        check="model.folder",
        says="has no causal language model of model_type 'llama9'",
        spoil=config(model_type="llama9", architectures=["Llama9ForCausalLM"]),
    ),
    Mistake(
        name="config.json of a larger model",
        command=OF_SITE,
        check="model.load",
        says="18 tensors are missing or have another shape than the model's configuration says",
        spoil=config(num_hidden_layers=4),
    ),
    Mistake(
        name="a family that the policy does not allow",
        command=OF_SITE,
        check="model.identity",
        says="its architecture is LlamaForCausalLM, allowed are GemmaForCausalLM (by the policy)",
        spoil=keys(POLICY, model={"families": ["GemmaForCausalLM"]}),
    ),
    Mistake(
        name="a model without the layers that the study trains",
        command=OF_SITE_WITH_PLAN,
        check="model.adapters",
        says="no linear layer is called q_proj, v_proj; the model has c_attn",
        spoil=lambda study: study.toml(SITE, model={"slm": str(study.path("models/other"))}),
    ),
    Mistake(
        name='style "chat" for a model without a chat template',
        command=OF_SITE,
        check="model.load",
        says="has no chat template; it is a base model, or chat_template.jinja was not copied",
        spoil=lambda study: (
            gone(f"{SLM}/chat_template.jinja")(study),
            study.toml(SITE, model={"style": "chat"}),
        ),
    ),
    Mistake(
        name="4-bit weights on a CPU",
        command=OF_SITE,
        check="model.place",
        says="4bit weights are computed with on CUDA devices alone, and this model is for the CPU",
        spoil=keys(SITE, model={"device": "cpu", "quantization": "4bit"}),
    ),
    Mistake(
        name="a type that is not offered",
        command=OF_SITE,
        check="settings",
        says="model.dtype: Input should be 'float32' or 'bfloat16', got 'float16'",
        spoil=keys(SITE, model={"dtype": "float16"}),
    ),
    Mistake(
        name="an LLM by its URL alone",
        command=OF_HUB,
        check="settings",
        says="llm: https://llm.example.org/v1 is a URL; a model is a folder, and an LLM behind a server a table",
        spoil=keys(SERVER, llm="https://llm.example.org/v1"),
    ),
    Mistake(
        name="an LLM's server that is not there",
        command=OF_HUB,
        check="model.server",
        says="Connection refused",
        spoil=lambda study: study.toml(
            SERVER,
            llm={
                "endpoint": "http://127.0.0.1:9/v1",
                "model": "large",
                "tokenizer": str(study.path(SLM)),
            },
        ),
        slow=True,
    ),
)

STUDIES = (
    Mistake(
        name="a pool sample without its answer",
        command=OF_HUB,
        check="pool",
        says="pool.jsonl:7: lacks answer; expected the keys sample_id, question, choices, answer",
        spoil=lambda study: study.lines("pool.jsonl", lambda rows: rows[6].pop("answer")),
    ),
    Mistake(
        name="a sample id twice",
        command=OF_HUB,
        check="pool",
        says="pool.jsonl:7: repeats the sample_id 'pool-0000' of line 1",
        spoil=sample(sample_id="pool-0000"),
    ),
    Mistake(
        name="private records in place of the pool",
        command=OF_HUB,
        check="pool",
        says="hospital-a.jsonl:1: lacks sample_id and has 3 unknown key(s)",
        spoil=lambda study: study.toml(SERVER, pool=str(study.path(RECORDS))),
    ),
    Mistake(
        name="a sample that is too long for the LLM",
        command=OF_HUB,
        check="pool.length",
        says="pool.jsonl:7: sample 'pool-0006' is too long for the LLM: needs 2427 tokens with its path, at most 512",
        spoil=sample(question="what is " * 600),
    ),
    Mistake(
        name="a strategy that nobody knows",
        command=OF_HUB,
        check="plan",
        says="allocation strategy: expected one of band, domain, gain",
        spoil=keys(STUDY, allocation={"strategy": "lada_plus"}),
    ),
    Mistake(
        name="a contrastive form that nobody knows",
        command=OF_HUB,
        check="plan",
        says="contrastive_form: expected one of dpo, margin, got 'ppo'",
        spoil=keys(STUDY, distillation={"contrastive_form": "ppo"}),
    ),
    Mistake(
        name="integer_scale = 1",
        command=OF_HUB,
        check="plan",
        says="expected a std of at least 16.0 steps, got 4.24; raise the scale from 1 to 120",
        spoil=keys(STUDY, statistics={"integer_scale": 1}),
    ),
    Mistake(
        name="too little noise for the cap",
        command=OF_HUB,
        check="plan",
        says="above its own cap of 4.0; take more noise, fewer rounds or steps, or a higher cap",
        spoil=keys(STUDY, training={"noise_multiplier": 0.4}),
    ),
    Mistake(
        name="more rounds than the cap pays for",
        command=OF_HUB,
        check="plan",
        says="its 50 rounds would spend epsilon",
        spoil=keys(STUDY, rounds=50),
    ),
    Mistake(
        name="a delta that is too large for so many people",
        command=OF_HUB,
        check="plan",
        says="target_delta 0.01 is not far below 1/units",
        level="warning",
        spoil=keys(STUDY, privacy={"target_delta": 0.01}),
    ),
    Mistake(
        name="more expected people in a step than there are",
        command=OF_HUB,
        check="plan",
        says="expected_units is 5000, and the largest site draws 80 a step",
        level="warning",
        spoil=keys(STUDY, training={"expected_units": 5000.0}),
    ),
    Mistake(
        name="a quota above the pool",
        command=OF_HUB,
        check="plan",
        says="[allocation] quota is 5000, the pool has 192 samples",
        level="warning",
        spoil=keys(STUDY, allocation={"quota": 5000}),
    ),
    Mistake(
        name="more paths than samples",
        command=OF_HUB,
        check="plan",
        says="paths.budget is 5000, the pool has 192 samples; lower the budget or enlarge the pool",
        spoil=keys(STUDY, paths={"budget": 5000}),
    ),
    Mistake(
        name="a screen that lets nothing through",
        command=OF_HUB,
        check="plan",
        says="the study: screen_low is above screen_high",
        spoil=keys(STUDY, allocation={"screen_low": 0.9, "screen_high": 0.1}),
    ),
    Mistake(
        name="a guide that finishes in the only round",
        command=OF_HUB,
        check="plan",
        says="the study: guide.finish needs rounds >= 2",
        spoil=keys(STUDY, guide=GUIDE),
    ),
    Mistake(
        name="a unit without a name",
        command=OF_HUB,
        check="study",
        says="privacy.unit: String should have at least 1 character",
        spoil=keys(STUDY, privacy={"unit": ""}),
    ),
    Mistake(
        name="an adjacency that nobody knows",
        command=OF_HUB,
        check="study",
        says="privacy.adjacency: Input should be 'add_or_remove_one_unit', got 'replace_one_record'",
        spoil=keys(STUDY, privacy={"adjacency": "replace_one_record"}),
    ),
    Mistake(
        name="another embedder",
        command=OF_HUB,
        check="embedder",
        says="embedder: expected 'hashed-ngrams' or 'minilm', got 'bge-small'",
        spoil=keys(STUDY, embedder="bge-small"),
    ),
    Mistake(
        name="an answer form that nobody knows",
        command=OF_HUB,
        check="study",
        says="answer_form: Input should be 'cloze', 'listed' or 'reasoned', got 'letters'",
        spoil=keys(STUDY, answer_form="letters"),
    ),
    Mistake(
        name="paths that are longer than the LLM's context",
        command=OF_HUB,
        check="plan.sizes",
        says="paths.max_new_tokens is 1000, the LLM",
        spoil=keys(STUDY, paths={"max_new_tokens": 1000}),
    ),
)

DRAFTS = (
    Mistake(
        name="sums over more sites than the roster has",
        command=OF_DRAFT,
        check="plan",
        says="min_cohort: it is 5, the roster has 3 sites; lower it, or take more sites",
        spoil=keys(STUDY, min_cohort=5),
    ),
    Mistake(
        name="a study file that was changed after it was proposed",
        command=OF_DRAFT,
        check="plan.kept",
        says="paths.budget: proposed was 96, now it is 90",
        level="warning",
        spoil=proposed,
    ),
)

PLANS = (
    Mistake(
        name="something else in place of the plan",
        command=f"{OF_SITE} --plan hub/study.toml",
        check="plan.read",
        says="not a study plan",
    ),
    Mistake(
        name="a plan that has expired, or a clock that is ahead of its end",
        command=OF_SITE_WITH_PLAN,
        check="plan.policy",
        says="it expired at 2020-01-01T00:00:00Z",
        spoil=plan(expires="2020-01-01T00:00:00Z"),
    ),
    Mistake(
        name="the site's cap is below the plan's",
        command=OF_SITE_WITH_PLAN,
        check="plan.policy",
        says="its epsilon cap is 4.0, the policy allows 1.0 per study",
        spoil=keys(POLICY, epsilon_cap_per_study=1.0),
    ),
    Mistake(
        name="the auditor's cap is below the plan's",
        command=OF_AUDITOR_WITH_PLAN,
        check="plan.policy",
        says="epsilon_cap 4.0 is above 1.0",
        spoil=keys(AUDITOR, epsilon_cap=1.0),
    ),
    Mistake(
        name="the site's delta is below the plan's",
        command=OF_SITE_WITH_PLAN,
        check="plan.policy",
        says="delta is 1e-05, the policy allows 1e-07",
        spoil=keys(POLICY, target_delta=1e-7),
    ),
    Mistake(
        name="a batch that does not hold one person",
        command=OF_SITE_WITH_PLAN,
        check="plan.sizes",
        says="max_records_per_unit is 2, physical_batch_size of the site's settings is 1; raise",
        spoil=keys(SITE, physical_batch_size=1),
    ),
    Mistake(
        name="earlier studies have spent the budget",
        command=OF_SITE_WITH_PLAN,
        check="ledger",
        says="of 4 over all studies is spent on hospital-a.people, and with the whole of this study it would be",
        spoil=spent,
    ),
)
