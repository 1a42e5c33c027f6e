"""A study that this site took part in, as its own folder holds it; needs no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lada_clients.net.study_folder import Outbox, find_study_folder
from lada_clients.site.gates.slm import SiteSlm, known_hashes
from lada_clients.site.settings import SitePolicy, SiteSettings, read_site_settings
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.kinds import Kind
from lada_protocol.party_files import read_roster
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.index import Slot
from lada_protocol.wire.messages import AcceptanceBody, parse_body
from lada_secure.errors import ParameterError, PeerError
from lada_secure.models.identity import ModelIdentity
from lada_secure.storage.state_folder import check_state_folder
from lada_secure.storage.whole_files import read_file

if TYPE_CHECKING:
    # The libraries of models take seconds, and a refusal should not.
    from lada_clients.site.memory import SiteMemory
    from lada_secure.models.adapters import AdapterWeights
    from lada_secure.models.loading import LanguageModel
    from lada_secure.models.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStudy:
    """One study at this site.

    settings_path: of the site's settings file. folder: the study's own. slm: the model that this
    site signed for.
    """

    settings_path: Path
    settings: SiteSettings
    policy: SitePolicy
    folder: Path
    plan: StudyPlan
    slm: ModelIdentity

    @property
    def memory(self) -> SiteMemory:
        """What its rounds have left."""
        from lada_clients.site.memory import SiteMemory

        return SiteMemory(folder=self.folder)

    def round(self, wanted: int | None) -> int:
        """The round that is wanted, or the last that was trained.

        Raises: ParameterError: it was not trained, or none was.
        """
        trained = self.memory.trained_rounds()
        if not trained:
            raise ParameterError(
                f"study {self.plan.study_id}: no round's training has ended here yet; there is no "
                "model but the one from before"
            )
        if wanted is not None and wanted not in trained:
            raise ParameterError(
                f"--round {wanted}: study {self.plan.study_id} has the trained rounds "
                f"{', '.join(map(str, trained))} here"
            )
        return trained[-1] if wanted is None else wanted

    def check_model(self) -> None:
        """Check that the SLM is the one that this site has signed for.

        Raises: ParameterError: says what differs.
        """
        now = SiteSlm(settings=self.settings, hashes=known_hashes(self.settings)).identity()
        differs = [
            f"{name}: expected {getattr(self.slm, name)!s:.16}, found {getattr(now, name)!s:.16}"
            for name in self.slm.changes(now)
        ]
        if differs:
            raise ParameterError(
                f"the SLM {self.settings.slm_folder} is not the one that study "
                f"{self.plan.study_id} was trained on: {'; '.join(differs)}. Name that one, called "
                "as it was then, in [model] of the settings"
            )

    def open_model(self) -> LanguageModel:
        """The SLM with fresh adapters, as its site trains it: it answers as before the study.

        Raises: ParameterError: see `check_model`.
        """
        return trained_view(self.open_adapted(self.settings.model.placement))

    def open_adapted(self, placement: Placement) -> LanguageModel:
        """The same as PEFT wraps it, which alone can write its adapters; see `trained_view`.

        Raises: ParameterError: see `check_model`.
        """
        import torch

        from lada_secure.method.mechanisms import adapter_settings
        from lada_secure.models.adapters import attach_adapters
        from lada_secure.models.loading import load_language_model

        self.check_model()
        torch.set_num_threads(self.settings.threads)
        bare = load_language_model(
            str(self.settings.slm_folder),
            cache_dir=self.settings.cache_dir,
            calling=self.settings.model.calling,
            placement=placement,
        )
        shape = adapter_settings(self.plan.distillation, bare, seed=self.plan.seed)
        return attach_adapters(bare.with_form(self.plan.form), shape)

    def adapters(self, round_id: int) -> AdapterWeights:
        """What a round's training left. Raises: ParameterError: missing, or another's."""
        return self.memory.student(round_id)[0]


def trained_view(lm: LanguageModel) -> LanguageModel:
    """A model with the adapters in it, without PEFT's wrapper: the names that a site's files use.

    Args: lm: of `SiteStudy.open_adapted`; both share all weights.
    """
    wrapper: Any = lm.model
    return replace(lm, model=wrapper.get_base_model())


def open_study(settings_path: Path, study: str | None) -> SiteStudy:
    """Open a study by its id, or the only one that there is.

    Raises: ParameterError: settings, state folder, plan or acceptance cannot be used, or there is
        no such study, or there are several.
    """
    settings, policy = read_site_settings(settings_path)
    check_state_folder(settings.state_dir, party=settings.party, role="site")
    folder = find_study_folder(settings.state_dir, study)
    path = folder / PLAN_FILE
    try:
        plan = parse_plan(read_file(path))
    except PeerError as error:
        raise ParameterError(
            f"{path}: {error}; the file is damaged, restore it from its backup"
        ) from error
    return SiteStudy(
        settings_path=settings_path,
        settings=settings,
        policy=policy,
        folder=folder,
        plan=plan,
        slm=_signed_slm(settings, policy, plan),
    )


def _signed_slm(settings: SiteSettings, policy: SitePolicy, plan: StudyPlan) -> ModelIdentity:
    """The model of this site's acceptance, which lies in the study's outbox."""
    roster = read_roster(settings.roster, pinned=policy.roster_sha256)
    outbox = Outbox(folder=settings.state_dir, roster=roster)
    slot = Slot(Kind.ACCEPTANCE, 0, "", 0, settings.party, "")
    try:
        kept = outbox.load(slot, study_id=plan.study_id, plan_hash=plan.hash)
        if kept is not None:
            return parse_body(kept[0], AcceptanceBody).slm
    except PeerError as error:
        raise ParameterError(
            f"study {plan.study_id}: this site's acceptance cannot be read: {error}; restore the "
            "study's folder, and name the roster of that study in the settings"
        ) from error
    raise ParameterError(
        f"study {plan.study_id} was never accepted here, so nothing was trained in it"
    )
