"""What works with which family of models, found out on small ones, for `docs/results/models.md`.

python tests/doubles/architecture_table.py    writes the page's table again
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from architecture_doubles import FAMILIES, family_folder
from trainer_doubles import opened_trainer, stir_adapters, units_of_sizes
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import (
    AdapterSettings,
    adapter_targets,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.evaluation import greedy_rationales, rationale_log_probabilities
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import LanguageModel, load_folder
from lada_secure.models.preflight import probe_model
from lada_secure.models.rationale_scoring import RationaleScorer

PAGE: Final = Path(__file__).parents[2] / "docs" / "results" / "models.md"
BEGIN, END = "<!-- table begins -->", "<!-- table ends -->"
WORKS: Final = "works"
# Layers of the attention and of the feed-forward part, by the names that a family gives them.
NAMED: Final[dict[str, tuple[str, ...]]] = {
    "Llama": ("q_proj", "o_proj", "down_proj"),
    "Qwen2": ("q_proj", "o_proj", "down_proj"),
    "Qwen3": ("q_proj", "o_proj", "down_proj"),
    "Gemma 2": ("q_proj", "o_proj", "down_proj"),
    "Gemma 3": ("q_proj", "o_proj", "down_proj"),
    "Phi-3": ("qkv_proj", "o_proj", "gate_up_proj"),
    "Mistral": ("q_proj", "o_proj", "down_proj"),
    "GPT-2": ("c_attn", "c_proj", "c_fc"),
    "GPT-NeoX": ("query_key_value", "dense", "dense_h_to_4h"),
    "OPT": ("q_proj", "out_proj"),
    "BLOOM": ("query_key_value", "dense", "dense_h_to_4h"),
    "LFM2": ("q_proj", "out_proj", "w1"),
    "Falcon-H1": ("q_proj", "in_proj", "down_proj"),
    "Mamba": ("in_proj", "x_proj"),
}
PROMPT, PATH = "The patient has a fever?\nAnswer:", " gout. Because the kidneys have failed."


@dataclass(frozen=True, slots=True)
class Subject:
    """One family's folder, the model loaded from it, and transformers' own reading of it."""

    family: str
    folder: Path
    lm: LanguageModel

    def adapted(self, *targets: str) -> LanguageModel:
        """A fresh copy with adapters that are not zero."""
        lm = replace(self.lm, model=copy.deepcopy(self.lm.model))
        found = attach_adapters(lm, AdapterSettings(rank=2, alpha=4.0, target_modules=targets))
        stir_adapters(found)
        return found


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _forward(subject: Subject) -> None:
    """Logits of a whole text, special tokens included, as transformers alone has them."""
    theirs = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    ids = tokenizer(PROMPT + PATH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = theirs(ids, use_cache=False).logits[0].double().log_softmax(-1)
        own = subject.lm.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
    _demand(float((logits - own).abs().max()) < 1e-4, "other logits")
    row = encode_row(subject.lm, PROMPT, PATH)
    _demand(list(row.tokens[:-1]) == ids[0].tolist(), "other tokens")
    with torch.no_grad():
        whole = torch.tensor([row.tokens])
        logits = theirs(whole, use_cache=False).logits[0].double().log_softmax(-1)
    places = range(row.target_start, len(row.tokens))
    expected = sum(float(logits[at - 1, row.tokens[at]]) for at in places)
    found = rationale_log_probabilities(subject.lm, [PROMPT], [PATH], batch_size=1)
    _demand(abs(float(found.total[0]) - expected) < 1e-3, "other scores")
    with torch.no_grad():
        scored = RationaleScorer(subject.lm.model, device=torch.device("cpu"))([row])
    _demand(abs(float(scored[0]) - expected) < 1e-3, "other scores in training")


def _adapters(subject: Subject) -> None:
    """Adapters on the named layers change what the model says, and nothing else is trained."""
    lm = subject.adapted(*NAMED[subject.family])
    trained = [name for name, one in lm.model.named_parameters() if one.requires_grad]
    _demand(all("lora_" in name for name in trained), "more is trained than adapters")
    found = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    _demand(found == set(NAMED[subject.family]), f"adapters on {sorted(found)}")
    before, after = (
        rationale_log_probabilities(one, [PROMPT], [PATH], batch_size=1).total[0]
        for one in (subject.lm, lm)
    )
    _demand(abs(before - after) > 1e-3, "adapters without effect")


def _engines(subject: Subject) -> None:
    """Gradients of every unit by both engines, and by autograd on each unit alone."""
    rows = [
        encode_row(subject.lm, PROMPT, PATH),
        encode_row(subject.lm, "Which?", " a fever"),
        encode_row(subject.lm, "Who is owed?", " the bank"),
    ]
    unit_of_row = (0, 1, 1)
    taken = {}
    for name in ("fused", "opacus"):
        lm = subject.adapted(*NAMED[subject.family])
        probe_engine(lm, name)
        engine = open_engine(lm.model, name)
        scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
        taken[name] = engine.gradients(2, unit_of_row, partial(_negative_sum, scorer, rows))[0]
        engine.close()
    lm = subject.adapted(*NAMED[subject.family])
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    for unit in (0, 1):
        mine = [row for row, owner in zip(rows, unit_of_row, strict=True) if owner == unit]
        alone = torch.autograd.grad(_negative_sum(scorer, mine), trained, allow_unused=True)
        for at, one in enumerate(alone):
            expected = torch.zeros_like(trained[at]) if one is None else one
            scale = max(float(expected.abs().max()), 1e-3)
            for name, found in taken.items():
                gap = float((found[at][unit] - expected).abs().max())
                _demand(gap < 1e-3 * scale, f"{name} differs by {gap / scale:.1e}")


def _negative_sum(scorer: RationaleScorer, rows: list) -> torch.Tensor:
    return -scorer(rows).sum()


def _private_step(subject: Subject) -> None:
    """One step of DP-SGD: a clipped sum that is not zero, noise, and every B moved."""
    lm = subject.adapted(*NAMED[subject.family])
    before = {
        name: one.detach().clone() for name, one in lm.model.named_parameters() if "lora_B" in name
    }
    trainer = opened_trainer(
        lm,
        units_of_sizes(2, 1, 3),
        pool=(),
        privacy=DpSgdParameters(
            noise_multiplier=1.0,
            l2_clip_norm=1.0,
            sampling_probability=0.5,
            expected_units=3,
            steps=1,
            pool_gradients="public",
        ),
        settings=TrainerSettings(learning_rate=1e-3, physical_batch_size=4),
    )
    units = [one for one in trainer._units or () if one.examples]
    norm = float(trainer._clipped_sum(units).integers().double().norm())
    _demand(norm > 0, "a clipped sum of zero")
    trainer.step()
    trainer.close()
    now = dict(lm.model.named_parameters())
    _demand(all(not torch.equal(one, now[name]) for name, one in before.items()), "B at rest")


def _generate(subject: Subject) -> None:
    """Greedy paths as transformers itself writes them, and the gates' calls."""
    probe_model(subject.lm, what="the model")
    (written,) = greedy_rationales(subject.lm, [PROMPT], batch_size=1, max_new_tokens=8)
    theirs = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
    context = subject.lm.encode_prompt(PROMPT)
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=1)
    with torch.no_grad():
        ids = theirs.generate(torch.tensor([context]), generation_config=config)
    own = [one for one in ids[0, len(context) :].tolist() if one != 1]
    _demand(written == subject.lm.continuation(context, own), "another path")


def _export(subject: Subject) -> None:
    """Adapters as bytes, put on a model that was loaded anew."""
    lm = subject.adapted(*NAMED[subject.family])
    again = attach_adapters(
        load_folder(subject.folder, name=subject.family),
        AdapterSettings(rank=2, alpha=4.0, target_modules=NAMED[subject.family], seed=9),
    )
    load_adapters(again, adapter_weights(lm))
    one, other = (
        rationale_log_probabilities(each, [PROMPT], [PATH], batch_size=1).total[0]
        for each in (lm, again)
    )
    _demand(abs(one - other) < 1e-4, "other scores")


CHECKS: Final[Mapping[str, Callable[[Subject], None]]] = {
    "forward": _forward,
    "LoRA on named layers": _adapters,
    "engines agree": _engines,
    "private step": _private_step,
    "generate": _generate,
    "save and load adapters": _export,
}
COLUMNS: Final = ("family", "class", "load", *CHECKS, "adapted by default")


def family_row(family: str, folder: Path) -> dict[str, str]:
    """What happens with one family: "works", or what it is refused with."""
    family_folder(family, folder)
    row = {"family": family}
    try:
        lm = load_folder(folder, name=family)
    except ParameterError as error:
        return {**row, "class": "", "load": f"refused: {error}"}
    row |= {"class": type(lm.model).__name__, "load": WORKS}
    for name, check in CHECKS.items():
        try:
            check(Subject(family, folder, lm))
            row[name] = WORKS
        except ParameterError as error:
            row[name] = f"refused: {error}"
    try:
        row["adapted by default"] = ", ".join(f"`{one}`" for one in adapter_targets(lm.model, ()))
    except ParameterError as error:
        row["adapted by default"] = f"refused: {error}"
    return row


def line(row: Mapping[str, str]) -> str:
    """A row of the page's table."""
    return f"| {' | '.join(row.get(column, '') for column in COLUMNS)} |"


def main() -> None:
    """Write the table into the page."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            lines.append(line(family_row(family, Path(folder) / family)))
            sys.stdout.write(f"{lines[-1]}\n")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
