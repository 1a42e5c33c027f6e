"""`lada site evaluate`: models on held-out records, at the site and for it alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from lada_clients.site.gates.files import check_files
from lada_clients.site.results.answers import Answer, Question, answers
from lada_clients.site.results.candidates import Candidate, Others, candidates, check_others
from lada_clients.site.results.comparison import Answered, Drawing, HeldOut, compare, figures_of
from lada_clients.site.results.evaluation import Evaluation, keep_evaluation
from lada_clients.site.results.intervals import RESAMPLES
from lada_clients.site.results.study import SiteStudy
from lada_clients.site.results.topics import read_topics
from lada_clients.site.runner import fingerprint_key
from lada_protocol.plan import format_time
from lada_secure.canonical import Json, canonical_json
from lada_secure.data.record_faults import refuse
from lada_secure.data.records import PoolSample, RecordFile, inspect_records, read_pool
from lada_secure.data.unit_ids import canonical_unit
from lada_secure.errors import ParameterError
from lada_secure.method.training import written_tokens
from lada_secure.models.public_questions import public_questions
from lada_secure.ranges import within
from lada_secure.storage.line_file import open_line_file
from lada_secure.storage.whole_files import read_file, read_if_there

logger = logging.getLogger(__name__)

LOG_FILE: Final = "evaluations.jsonl"
_DOMAIN: Final = b"lada/2/evaluated-file/"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What a person wants measured.

    held_out: None is the settings' file. general: None is the public questions that come with this
    software; with `ask_general` False none are asked.
    """

    round_id: int | None = None
    held_out: Path | None = None
    others: Others = field(default_factory=Others)
    general: Path | None = None
    ask_general: bool = True
    seed: int = 0
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        within(100, 1_000_000, resamples=self.resamples)
        within(0, 2**32 - 1, seed=self.seed)


class Shown(Protocol):
    """Where progress goes."""

    def begun(self, name: str) -> None:
        """A model is being asked."""

    def progress(self, done: int, whole: int) -> None:
        """So many of its questions are answered."""


def evaluate(study: SiteStudy, wanted: EvaluationRequest, shown: Shown) -> Evaluation:
    """Measure the SLM before and after the study, and others, and keep what was found.

    Raises: ParameterError: files, models or the round cannot be used; nothing was measured.
    """
    chosen = study.round(wanted.round_id)
    check_others(study, wanted.others)
    file, path, trained = _held_out_file(study, wanted.held_out)
    general = _general(wanted)
    topics = read_topics(study.folder, study.plan)
    held_out = HeldOut(
        records=file.records,
        units=[canonical_unit(one.unit) for one in file.records],
        topics=[] if topics is None else topics.of([one.question for one in file.records]),
    )
    before = _counted(study, path, chosen)
    found = [
        _answered(study, one, file, general, shown)
        for one in candidates(study, chosen, wanted.others)
    ]
    drawing = Drawing(seed=wanted.seed, resamples=wanted.resamples)
    first, after, *rest = found
    pairs = [(after, first), *((one, other) for one in rest for other in (first, after))]
    evaluation = Evaluation(
        time=format_time(datetime.now(UTC)),
        study_id=study.plan.study_id,
        plan_sha256=study.plan.hash,
        round=chosen,
        held_out=path.name,
        records=len(file.records),
        units=len(set(held_out.units)),
        evaluated_before=before,
        trained_units=None if trained is None else len(trained & set(held_out.units)),
        seed=wanted.seed,
        resamples=wanted.resamples,
        topics=() if topics is None else topics.names,
        models=tuple(figures_of(one, held_out, drawing) for one in found),
        comparisons=tuple(compare(one, other, held_out, drawing) for one, other in pairs),
    )
    keep_evaluation(study.folder, evaluation)
    return evaluation


def _answered(
    study: SiteStudy,
    one: Candidate,
    file: RecordFile,
    general: tuple[PoolSample, ...],
    shown: Shown,
) -> Answered:
    whole, done = len(file.records) + len(general), 0
    shown.begun(one.name)

    def told(more: int) -> None:
        nonlocal done
        done += more
        shown.progress(done, whole)

    def asked(questions: Sequence[Question]) -> list[Answer]:
        return answers(
            one.lm,
            questions,
            batch_size=study.settings.physical_batch_size,
            max_new_tokens=written_tokens(study.plan),
            told=told,
        )

    return Answered(
        name=one.name,
        adapters_sha256=one.adapters_sha256,
        held_out=asked(file.records),
        general=asked(general),
    )


def _held_out_file(
    study: SiteStudy, named: Path | None
) -> tuple[RecordFile, Path, set[str] | None]:
    """The held-out records, with the same checks as before a study, and who was trained on.

    Raises: ParameterError: none is named, or all faults by line.
    """
    settings = study.settings
    path = named or settings.held_out
    if path is None:
        raise ParameterError(
            f"{study.settings_path} names no held_out file; name one in it, or with --held-out"
        )
    if settings.records.exists():
        files = check_files(settings.model_copy(update={"held_out": path}), study.policy)
        if files.held_out is not None:
            trained = {canonical_unit(one.unit) for one in files.records.records}
            return files.held_out, path, trained
    # The training records may be gone by now; then nothing tells who stands in both files.
    logger.warning(
        "%s is not there; whether people of %s are in it was not checked", settings.records, path
    )
    found = inspect_records(path)
    refuse([(found.name, fault) for fault in found.faults])
    return found, path, None


def _general(wanted: EvaluationRequest) -> tuple[PoolSample, ...]:
    if not wanted.ask_general:
        return ()
    return public_questions() if wanted.general is None else read_pool(wanted.general)


def _counted(study: SiteStudy, path: Path, round_id: int) -> int:
    """Note this look at a held-out file; how often it was looked at before.

    By a keyed hash of its content: a bare one of few records could be confirmed by whoever guesses
    them. A look counts from its beginning on, whatever becomes of it.
    """
    settings, key = study.settings, fingerprint_key(study.settings)
    # Lines in another order are the same records.
    lines = b"\n".join(sorted(set(read_file(path).splitlines())))
    digest = hashlib.sha256(lines).hexdigest().encode("ascii")
    mark = hmac.new(key, _DOMAIN + digest, hashlib.sha256).hexdigest()
    log = settings.state_dir / LOG_FILE
    looks = (read_if_there(log) or b"").splitlines()
    row: dict[str, Json] = {
        "file": mark,
        "study_id": study.plan.study_id,
        "round": round_id,
        "time": format_time(datetime.now(UTC)),
    }
    open_line_file(log)(canonical_json(row) + b"\n")
    return sum(_marked(line) == mark for line in looks)


def _marked(line: bytes) -> str:
    try:
        return str(json.loads(line)["file"])
    except (ValueError, KeyError, TypeError):
        # A line that a full disk has cut.
        return ""
