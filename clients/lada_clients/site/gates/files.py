"""The file gate: what follows from a site's own files, the plan and the model, before it accepts.

A record that stops a release tells that it is there, and every restart would pay again. So all
faults of the files are found here, at once and before anything is promised or spent. This is the
one place that reads records without a reservation: nothing of it leaves, and its messages name
files and lines on the site's own screen, never what a record says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.plan_mechanisms import plan_inconsistencies
from lada_secure.data.record_faults import Fault, lines_text, refuse, too_long_faults
from lada_secure.data.records import PoolSample, Record, RecordFile, inspect_records
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit, bound_units, canonical_unit, unit_faults

if TYPE_CHECKING:
    from lada_clients.site.learner import SiteLearner

logger = logging.getLogger(__name__)

# More take longer than a person waits without a word.
_MANY: Final = 5_000
_NOT_ENCODED: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFiles:
    """A site's records and held-out records, as they passed the gate."""

    records: RecordFile
    held_out: RecordFile | None

    def units(self, policy: SitePolicy, *, max_records_per_unit: int) -> tuple[Unit, ...]:
        """The bounded privacy units of the training records, see `bound_units`."""
        # With "refuse", no unit has two spellings; the protective reading then costs nothing.
        spellings = policy.units.spellings
        return bound_units(
            self.records.records,
            max_records_per_unit=max_records_per_unit,
            spellings="one_person" if spellings == "refuse" else spellings,
        )


def check_files(settings: SiteSettings, policy: SitePolicy) -> SiteFiles:
    """First half: all that the files alone say. Needs no network, no plan and no model.

    Raises: ParameterError: all faults of both files, by line.
    """
    records = inspect_records(settings.records)
    held_out = None if settings.held_out is None else inspect_records(settings.held_out)
    refuse([*_file_faults(records, policy), *_file_faults(held_out, policy)])
    if held_out is not None:
        _warn_of_overlap(records, held_out)
    return SiteFiles(records=records, held_out=held_out)


def _file_faults(file: RecordFile | None, policy: SitePolicy) -> Iterator[tuple[str, Fault]]:
    if file is None:
        return
    units = unit_faults(
        file, spellings=policy.units.spellings, missing_like=policy.units.missing_like
    )
    for fault in sorted((*file.faults, *units), key=lambda one: one.line or 0):
        yield file.name, fault


def _warn_of_overlap(records: RecordFile, held_out: RecordFile) -> None:
    ids = {one.record_id for one in records.records}
    units = {canonical_unit(one.unit) for one in records.records}
    told = list(zip(held_out.records, held_out.lines, strict=True))
    for what, lines in (
        ("record_id", [line for one, line in told if one.record_id in ids]),
        ("unit", [line for one, line in told if canonical_unit(one.unit) in units]),
    ):
        if lines:
            logger.warning(
                "%s: %d record(s) share a %s with the training records (lines %s); the accuracy on "
                "them says little of people that the model has not seen",
                held_out.name,
                len(lines),
                what,
                lines_text(lines),
            )


def check_with_model(learner: SiteLearner, files: SiteFiles, policy: SitePolicy) -> None:
    """Second half: plan against settings and model, and every text in the model's own tokens.

    Loading the learner has loaded the model, put its adapters on it and embedded the pool.

    Raises: ParameterError: all faults; nothing was posted and nothing is in the ledger.
    """
    told = [*plan_inconsistencies(learner.plan), *_size_faults(learner)]
    refuse([("the plan", Fault(line=None, what=one)) for one in told])
    _call_once(learner)
    if policy.records.too_long == "refuse":
        refuse(list(_length_faults(learner, files)))


def _size_faults(learner: SiteLearner) -> Iterator[str]:
    """Sizes of the plan against this site's settings and model; no record is looked at."""
    plan, settings, most = learner.plan, learner.settings, learner.model.max_tokens
    bound = plan.privacy.max_records_per_unit
    if bound > settings.physical_batch_size:
        yield (
            f"max_records_per_unit is {bound}, physical_batch_size of the site's settings is "
            f"{settings.physical_batch_size}; raise physical_batch_size to {bound} or more"
        )
    if plan.paths.max_new_tokens >= most:
        yield (
            f"paths.max_new_tokens is {plan.paths.max_new_tokens}, the model {plan.slm!r} takes "
            f"{most} tokens with the prompt"
        )


def _call_once(learner: SiteLearner) -> None:
    """The trainer's device and engine on this model, and a call of it.

    Raises: ParameterError: the model cannot be used as the plan would.
    """
    from lada_clients.site.training import trainer_settings
    from lada_secure.dpsgd.engine_choice import open_engine
    from lada_secure.models.probe import probe_model

    trainer = trainer_settings(learner.plan, learner.settings, round_id=0)
    trainer.torch_device()
    open_engine(learner.model.model, trainer.engine).close()
    probe_model(learner.model, what="the model")


def _length_faults(learner: SiteLearner, files: SiteFiles) -> Iterator[tuple[str, Fault]]:
    """Texts that training or evaluation would have to cut, at the plan's lengths."""
    from lada_secure.models.evaluation import ANSWER_TOKENS
    from lada_secure.models.text_lengths import needed_tokens

    plan, lm = learner.plan, learner.model
    writes = plan.guide is not None and plan.guide.own_reasons
    new_tokens = plan.paths.max_new_tokens
    records, held_out = files.records, files.held_out
    texts: list[tuple[str, Sequence[int], Sequence[Record | PoolSample], Sequence[int]]] = [
        (
            records.name,
            records.lines,
            records.records,
            [new_tokens if writes and one.rationale is None else 0 for one in records.records],
        ),
        (
            "the coordinator's pool",
            range(1, len(learner.pool) + 1),
            learner.pool,
            [new_tokens] * len(learner.pool),
        ),
    ]
    if held_out is not None:
        texts.append(
            (
                held_out.name,
                held_out.lines,
                held_out.records,
                [0 if one.choices else ANSWER_TOKENS for one in held_out.records],
            )
        )
    count = len(records.records)
    if count > _MANY:
        logger.warning("counting the tokens of %d records, once before the study ...", count)
    for name, lines, found, written in texts:
        needed = for_each_unit(
            tuple(zip(found, written, strict=True)),
            lambda part: needed_tokens(
                lm, [one for one, _ in part], written=[tokens for _, tokens in part]
            ),
            otherwise=_NOT_ENCODED,
            what="counting tokens",
        )
        for fault in too_long_faults(lines, needed, at_most=lm.max_tokens):
            yield name, fault
        for line, tokens in zip(lines, needed, strict=True):
            if tokens == _NOT_ENCODED:
                yield name, Fault(line=line, what="the model's tokenizer cannot encode it")
