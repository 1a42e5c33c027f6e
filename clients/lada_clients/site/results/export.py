"""`lada site export`: a round's model in PEFT's own format, or merged into a full model.

What is written is loaded again before it gets its name, and must answer as the model here does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from lada_clients.site.results.asking import asked_tokens
from lada_clients.site.results.evaluation import Evaluation, read_evaluation
from lada_clients.site.results.folder import check_new, whole_folder
from lada_clients.site.results.model_card import calls_of, card_text
from lada_clients.site.results.release import ReleasedModel, released_model
from lada_clients.site.results.study import SiteStudy, trained_view
from lada_secure.errors import LadaError, ParameterError
from lada_secure.method.training import written_tokens
from lada_secure.models.adapters import load_lora, save_as_lora
from lada_secure.models.fingerprints import TEMPLATE_FILES, TOKENIZER_FILES
from lada_secure.models.loading import LanguageModel, quiet_transformers
from lada_secure.models.placement import Placement
from lada_secure.storage.whole_files import write_atomically

CARD: Final = "README.md"
PROVENANCE: Final = "lada.json"
_FORMAT: Final = "lada-export/1"
# Of the largest logit. In short types the model here and the one that is loaded round apart.
_TOLERANCE: Final = {"float32": 1e-4}
_ROUGH: Final = 0.05
_TRIED: Final = (8, 24)


class ExportFailed(LadaError):
    """What was written does not answer as the model here does; it was removed."""

    code = "export_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What a person says of an export.

    base_model: how the base model is called where the export will be used; None is its name here.
    merge: write a full model. figures: put accuracies of held-out records into the card.
    data_period, intended_use: in the person's own words, for the card.
    """

    merge: bool = False
    figures: bool = False
    base_model: str | None = None
    data_period: str = ""
    intended_use: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written. files: SHA-256 by name."""

    folder: Path
    facts: dict[str, Any]
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """One object for machines."""
        return {"folder": str(self.folder), **self.facts, "files": self.files}

    def sentences(self) -> tuple[str, ...]:
        """The same for people."""
        facts = self.facts
        kind = "a full model" if facts["merged"] else "adapters in PEFT's format"
        return (
            f"{self.folder}: {kind}, round {facts['round']} of study {facts['study_id']}, "
            f"{len(self.files)} files.",
            f"The ledger has released it: epsilon {facts['epsilon_study']:.4f} in this study, "
            f"{facts['epsilon_all_studies']:.4f} in all studies over {facts['population']}, at "
            f"delta {facts['target_delta']:g}.",
            "It holds figures of held-out records, which that does not cover: see its card."
            if facts["figures"]
            else "Its card holds no figures of held-out records; they stay at this site.",
        )


def export(study: SiteStudy, round_id: int | None, out: Path, wanted: ExportSettings) -> Exported:
    """Write a released round's model into a new folder.

    Raises: LedgerError: the ledger has not released it. ParameterError: a place that is taken, a
        model that changed, figures that were never measured. TransportError: cannot be written.
        ExportFailed: what was written answers another thing.
    """
    check_new(out)
    chosen = study.round(round_id)
    measured = read_evaluation(study.folder, chosen) if wanted.figures else None
    if wanted.figures and measured is None:
        raise ParameterError(
            f"--with-figures: round {chosen} of study {study.plan.study_id} was never evaluated "
            "here; run `lada site evaluate` first"
        )
    # Factors that come from weights are those of the type that was trained in.
    own = study.settings.model.placement
    lm = study.open_adapted(Placement(device="cpu", dtype=own.dtype))
    released = released_model(study, chosen, trained_view(lm))
    base = wanted.base_model or study.settings.slm_folder.name
    facts = _facts(study, lm, released, wanted, base)
    with whole_folder(out) as part:
        _write_adapters(lm, part, base=base)
        _check_loads(study, lm, part, merge=wanted.merge)
        _write_texts(study, lm, part, facts)
        _write_card(part, facts, measured)
        files = {
            str(path.relative_to(part)): _sha256(path)
            for path in sorted(part.rglob("*"))
            if path.is_file()
        }
    return Exported(folder=out, facts=facts, files=files)


def _facts(
    study: SiteStudy,
    lm: LanguageModel,
    released: ReleasedModel,
    wanted: ExportSettings,
    base: str,
) -> dict[str, Any]:
    """What `lada.json` says, and the card in words."""
    plan, settings, summary = study.plan, study.settings, released.budget.summary
    calling = settings.model.calling
    return {
        "format": _FORMAT,
        "merged": wanted.merge,
        "figures": wanted.figures,
        "site": settings.party,
        "population": summary.identity.population,
        "study_id": plan.study_id,
        "title": plan.title,
        "plan_sha256": plan.hash,
        "pool_sha256": plan.pool_sha256,
        "pool_size": plan.pool_size,
        "rounds": plan.rounds,
        "round": released.round_id,
        "adapters_sha256": released.weights.sha256,
        "base_model": base,
        "slm": study.slm.model_dump(),
        "unit": plan.privacy.unit,
        "adjacency": plan.privacy.adjacency,
        "max_records_per_unit": plan.privacy.max_records_per_unit,
        "epsilon_study": released.spending.epsilon,
        "epsilon_all_studies": summary.epsilon,
        "target_delta": released.budget.target_delta,
        "ledger_id": summary.identity.ledger_id,
        "ledger_head_index": released.head.index,
        "ledger_head_sha256": released.head.entry_hash,
        "paid_by": released.paid_by,
        "approved_by": released.approved_by[0],
        "approved_at": released.approved_by[1],
        "style": calling.style,
        "template": calling.template_text(),
        "tokens_before": list(lm.style.head),
        "tokens_behind": list(lm.style.tail),
        "end_tokens": sorted(lm.end_tokens),
        "max_tokens": lm.max_tokens,
        "answer_form": plan.answer_form,
        "calls": calls_of(lm),
        "max_new_tokens": asked_tokens(plan, lm),
        "measured_new_tokens": written_tokens(plan),
        "path_tokens": plan.paths.max_new_tokens,
        "data_period": wanted.data_period,
        "intended_use": wanted.intended_use,
    }


def _write_adapters(lm: LanguageModel, folder: Path, *, base: str) -> None:
    """Plain LoRA, whatever it was trained as; the base model by name, not by a path from here."""
    model: Any = lm.model
    vars(model.peft_config["default"])["base_model_name_or_path"] = base
    with quiet_transformers():
        save_as_lora(lm, folder)


def _check_loads(study: SiteStudy, lm: LanguageModel, folder: Path, *, merge: bool) -> None:
    """Load what was written onto the bare model, merge it if wanted, and compare the answers.

    Raises: ExportFailed.
    """
    here = _logits(lm.model)
    bare: Any = AutoModelForCausalLM
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        base = bare.from_pretrained(
            study.settings.slm_folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
        ).eval()
        loaded = load_lora(base, folder)
        _compare(here, _logits(loaded), study, what="the adapters")
        if merge:
            whole = loaded.merge_and_unload()
            _compare(here, _logits(whole), study, what="the merged model")
            for path in folder.iterdir():
                path.unlink()
            whole.save_pretrained(folder, safe_serialization=True)


def _logits(model: Any) -> list[Tensor]:
    rows = int(model.get_input_embeddings().weight.shape[0])
    device = model.get_input_embeddings().weight.device
    with torch.no_grad():
        return [
            model(torch.tensor([[(5 + 11 * at) % rows for at in range(length)]], device=device))
            .logits.float()
            .cpu()
            for length in _TRIED
        ]


def _compare(here: list[Tensor], there: list[Tensor], study: SiteStudy, *, what: str) -> None:
    allowed = _TOLERANCE.get(study.settings.model.dtype, _ROUGH)
    for one, other in zip(here, there, strict=True):
        apart, largest = float((one - other).abs().max()), float(one.abs().max())
        if not apart <= allowed * max(1.0, largest):
            raise ExportFailed(
                f"{what} that were written answer another thing than the model here: logits are "
                f"{apart:.2g} apart, expected {allowed:g} of {largest:.2g} at most; nothing was "
                "left. Tell the makers of this software, with the versions of peft and transformers"
            )


def _write_texts(
    study: SiteStudy, lm: LanguageModel, folder: Path, facts: Mapping[str, Any]
) -> None:
    """Tokenizer and template as they are, and how this software has called the model."""
    source = study.settings.slm_folder
    for name in (*TOKENIZER_FILES, *TEMPLATE_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    GenerationConfig(
        do_sample=False,
        max_new_tokens=facts["max_new_tokens"],
        eos_token_id=facts["end_tokens"],
        pad_token_id=lm.end_token,
    ).save_pretrained(folder)
    (folder / PROVENANCE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")


def _write_card(folder: Path, facts: Mapping[str, Any], measured: Evaluation | None) -> None:
    text = card_text(facts, measured)
    mode = 0o644 if measured is None else 0o600
    write_atomically(folder / CARD, text.encode("utf-8"), mode=mode)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
