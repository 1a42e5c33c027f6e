"""The coordinator's checks of its LLM, here or behind a server, and of pool and plan with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from lada_protocol.plan import StudyPlan
from lada_secure.check.running import Found, fine, unneeded, warn
from lada_secure.errors import ParameterError
from lada_secure.method.llm_round import GENERATION_BATCH_SIZE
from lada_secure.method.memory import LOWER_AT_THE_COORDINATOR
from lada_secure.method.plan_advice import plan_advice
from lada_secure.models.adapters import adapter_targets
from lada_secure.models.embedding import check_embedder
from lada_secure.models.fingerprints import FileHashes, identify
from lada_secure.models.loading import LanguageModel, model_folder, quiet_transformers
from lada_secure.models.model_checks import (
    ModelChecks,
    embedder_found,
    folder_findings,
    memory_found,
    place_findings,
    weights_memory,
)
from lada_secure.models.text_model import TextModel
from lada_server.check.reading import CoordinatorReading
from lada_server.study.llm_look import look_at_llm
from lada_server.study.llm_memory import forecast_llm
from lada_server.study.places import PLAN_FILE, read_kept_plan
from lada_server.study.proposal import (
    changed_since,
    check_plan,
    check_pool_lengths,
    check_room,
    draft_plan,
    prepare_study,
)

_SERVED: Final = "the LLM is behind a server"


class LlmChecks:
    """Checks of one coordinator's LLM. coordinator: what was read so far."""

    def __init__(self, coordinator: CoordinatorReading) -> None:
        self._coordinator = coordinator
        self._plan: StudyPlan | None = None
        self.of_model: ModelChecks[TextModel] = ModelChecks(
            what="the LLM",
            load=self._load,
            pool=lambda: coordinator.pool,
            asked_in=lambda: coordinator.study.answer_form,
            path_tokens=lambda: coordinator.study.paths.max_new_tokens,
            batch_size=lambda: GENERATION_BATCH_SIZE,
            request=coordinator.request,
        )

    def embedder(self) -> Iterator[Found]:
        """The study's."""
        yield embedder_found(self._coordinator.study.embedder)

    def plan(self) -> Iterator[Found]:
        """The plan that would be proposed, or goes on: as the run makes it, without keeping it.

        Raises: ParameterError: all that its own mechanisms would refuse, or that does not fit.
        """
        read = self._coordinator
        kept = read.study_dir / PLAN_FILE
        with quiet_transformers():
            study = prepare_study(
                read.study,
                pool=read.pool,
                roster=read.roster,
                now=datetime.now(UTC),
                kept_plan=kept,
            )
        check_plan(study.plan, roster=read.roster)
        self._plan = study.plan
        how = "goes on" if kept.exists() else "can be proposed"
        yield fine(
            f"study {study.plan.study_id} {how}: {study.clusters.count} clusters over "
            f"{len(study.pool)} samples, epsilon at most {study.plan.privacy.epsilon_cap:g}",
            clusters=study.clusters.count,
        )
        for said in plan_advice(study.plan):
            yield warn(f"{read.settings.study}: {said}")

    def draft(self) -> Iterator[Found]:
        """The plan as it would be proposed, but for its clusters; no weight is loaded for it.

        Raises: ParameterError: all that its own mechanisms, or any site, would refuse.
        """
        read = self._coordinator
        plan = draft_plan(read.study, pool=read.pool, roster=read.roster, now=datetime.now(UTC))
        check_embedder(plan.embedder)
        check_plan(plan, roster=read.roster)
        self._plan = plan
        yield fine(
            f"study {plan.study_id} can be proposed: every value is one that coordinator and sites "
            f"take; {len(read.pool)} samples, {plan.allocation.cells} cells",
            study=plan.study_id,
        )
        for said in plan_advice(plan):
            yield warn(f"{read.settings.study}: {said}")

    @property
    def drafted(self) -> StudyPlan | None:
        """The plan that `draft` or `plan` has found fit, if either has."""
        return self._plan

    def kept(self) -> Iterator[Found]:
        """What was proposed before, compared with the draft. Raises: ParameterError: unreadable."""
        plan = self._plan
        try:
            path = self._coordinator.study_dir / PLAN_FILE
        except ParameterError as error:
            # Another study is not over; whoever proposes this one now takes that one back.
            yield warn(str(error))
            return
        kept = read_kept_plan(path)
        if kept is None or plan is None:
            yield unneeded("this study was not proposed yet")
        elif changed := changed_since(kept, plan):
            yield warn("\n".join(one.what for one in changed), proposed=kept.study_id)
        else:
            yield fine(f"this very study was proposed already: {path}", proposed=kept.study_id)

    def identity(self) -> Iterator[Found]:
        """Which LLM it is, by hashes: for the operator's own record, no plan names it."""
        settings = self._coordinator.settings
        if not isinstance(settings.llm, str):
            yield unneeded(_SERVED)
            return
        found = identify(
            model_folder(settings.llm, cache_dir=settings.cache_dir),
            FileHashes(None),
            template=settings.model.calling.sha256,
        )
        yield fine(
            f"{found.sentence()}; weights {found.weights_sha256[:12]}..., tokenizer "
            f"{found.tokenizer_sha256[:12]}..., template {found.template_sha256[:12]}...",
            **found.model_dump(),
        )

    def folder(self) -> Iterator[Found]:
        """See `folder_findings`."""
        settings = self._coordinator.settings
        if not isinstance(settings.llm, str):
            yield unneeded(_SERVED)
            return
        yield from folder_findings(model_folder(settings.llm, cache_dir=settings.cache_dir))

    def server(self) -> Iterator[Found]:
        """Its URL and key, and that it is the LLM that it must be; see `endpoint.probe`."""
        settings = self._coordinator.settings
        if isinstance(settings.llm, str):
            yield unneeded("the LLM is loaded here")
            return
        model = self.of_model.lm
        yield fine(
            f"{model.name} gives log-probabilities that agree, and has the tokenizer of "
            f"{settings.llm.tokenizer}",
            model=settings.llm.model,
        )

    def place(self) -> Iterator[Found]:
        """See `place_findings`."""
        settings = self._coordinator.settings
        if not isinstance(settings.llm, str):
            yield unneeded(_SERVED)
            return
        yield from place_findings(settings.model.placement)

    def memory(self) -> Iterator[Found]:
        """The forecast over the study; of the weights alone where its plan has a fault."""
        settings, plan = self._coordinator.settings, self._plan
        placement, uplink = settings.model.placement, plan is not None and plan.uplink is not None
        if isinstance(settings.llm, str):
            folder = model_folder(settings.llm, cache_dir=settings.cache_dir)
        elif uplink:
            folder = settings.llm.tokenizer
        else:
            yield unneeded(_SERVED)
            return
        forecast = weights_memory(folder, placement.on_this_machine())
        if plan is not None:
            pool, calling = self._coordinator.pool, settings.model.calling
            # What of the plan the LLM cannot do, its own checks tell.
            with contextlib.suppress(ParameterError):
                forecast = forecast_llm(plan, pool, folder, calling=calling, placement=placement)
        yield memory_found(forecast, what="the LLM", lower=LOWER_AT_THE_COORDINATOR)

    def sizes(self) -> Iterator[Found]:
        """The plan's paths on the LLM. Raises: ParameterError: they do not fit."""
        lm, new_tokens = self.of_model.lm, self._coordinator.study.paths.max_new_tokens
        check_room(lm, new_tokens)
        yield fine(f"{lm.max_tokens} tokens hold the study's paths of {new_tokens}")

    def uplink(self) -> Iterator[Found]:
        """Layers for the adapters of an uplink. Raises: ParameterError: there are none."""
        lm, uplink = self.of_model.lm, self._coordinator.study.uplink
        if uplink is None:
            yield unneeded("the study has no uplink")
        elif isinstance(lm, LanguageModel):
            targets = adapter_targets(lm.model, uplink.adapter_targets)
            yield fine(f"adapters on {', '.join(targets)}", targets=list(targets))
        else:
            yield unneeded("adapters are tried at the server when the study is proposed")

    def lengths(self) -> Iterator[Found]:
        """Every sample in the LLM's tokens. Raises: ParameterError: faults by line and id."""
        read, lm = self._coordinator, self.of_model.lm
        new_tokens = read.study.paths.max_new_tokens
        check_pool_lengths(lm, read.pool, new_tokens=new_tokens, pool_file=read.settings.pool)
        yield fine(f"every sample fits into {lm.max_tokens} tokens with its path")

    def _load(self) -> TextModel:
        coordinator = self._coordinator
        settings = coordinator.settings.model_copy(update={"state_dir": coordinator.study_dir})
        return look_at_llm(settings, coordinator.study.form)
