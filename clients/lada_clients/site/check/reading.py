"""What a site's checks read: each file once, at its first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from lada_clients.net.study_folder import Outbox
from lada_clients.site.gates.files import SiteFiles, check_files, file_digests
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.identity.credentials import Credentials
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.party_checks import read_plan
from lada_protocol.party_files import read_roster, read_settings
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Slot
from lada_protocol.studies import STUDIES
from lada_protocol.wire.messages import AcceptanceBody, parse_body
from lada_secure.check.running import Request
from lada_secure.data.records import PoolSample, read_pool
from lada_secure.models.identity import ModelIdentity


class SiteReading:
    """Files of one site. Every property raises what reading its file raises."""

    def __init__(self, file: Path, request: Request) -> None:
        self._file = file
        self.request = request
        # Whether the coordinator was seen to answer, in the check of that.
        self.coordinator_answers = False

    @cached_property
    def settings(self) -> SiteSettings:
        """`site.toml`."""
        return read_settings(self._file, SiteSettings)

    @cached_property
    def policy(self) -> SitePolicy:
        """`policy.toml`."""
        return read_settings(self.settings.policy, SitePolicy)

    @cached_property
    def roster(self) -> Roster:
        """As the policy pins it."""
        return read_roster(self.settings.roster, pinned=self.policy.roster_sha256)

    @cached_property
    def credentials(self) -> Credentials:
        """This site's own, whatever the roster says of them."""
        return self.settings.credentials()

    @cached_property
    def files(self) -> SiteFiles:
        """Records and held-out records, without a fault."""
        file_digests(self.settings)
        return check_files(self.settings, self.policy)

    @cached_property
    def pool(self) -> tuple[PoolSample, ...]:
        """Public questions that were named, or of the study that is proposed now; or none.

        Raises: ParameterError: a fault of the named pool, by line. PeerError: wrong_pool: of the
          posted one, or it is not the plan's. TransportError: it cannot be fetched.
        """
        if self.request.pool is not None:
            return read_pool(self.request.pool)
        # A plan that was named may be of another study.
        if self.request.plan is not None or not self.coordinator_answers:
            return ()
        # Imported here: the libraries of the network take a while, and a refusal should not.
        from lada_clients.net.reaching import proposed_study
        from lada_clients.site.public_material import posted_pool

        with proposed_study(self.settings, pinned=self.policy.roster_sha256) as participant:
            return () if participant is None else posted_pool(participant)

    @cached_property
    def plan(self) -> StudyPlan | None:
        """The plan that was named, that is proposed now, or of the only study on disk, or None."""
        named = self.request.plan
        if named is not None:
            return read_plan(named)
        if self.coordinator_answers and self.proposed is not None:
            return self.proposed
        found = sorted((self.settings.state_dir / STUDIES).glob(f"*/{PLAN_FILE}"))
        return read_plan(found[0]) if len(found) == 1 else None

    @cached_property
    def proposed(self) -> StudyPlan | None:
        """What the coordinator proposes now; only where it answers."""
        # Imported here: the libraries of the network take a while, and a refusal should not.
        from lada_clients.net.reaching import proposed_plan

        return proposed_plan(self.settings, pinned=self.policy.roster_sha256)

    @property
    def signed_model(self) -> ModelIdentity | None:
        """The SLM that this site has accepted the known plan with; None where it has not yet.

        Raises: LadaError: the kept acceptance is damaged.
        """
        plan, roster, settings = self.known_plan, self.known_roster, self.settings
        if plan is None or roster is None:
            return None
        kept = Outbox(folder=settings.state_dir, roster=roster).load(
            Slot(Kind.ACCEPTANCE, 0, "", 0, settings.party, ""),
            study_id=plan.study_id,
            plan_hash=plan.hash,
        )
        return None if kept is None else parse_body(kept[0], AcceptanceBody).slm

    # What has been read already, in a check of its own; a fault there is told there alone.

    @property
    def known_roster(self) -> Roster | None:
        """The roster, if it could be read."""
        return vars(self).get("roster")

    @property
    def known_credentials(self) -> Credentials | None:
        """Certificates and keys, if they are fit for use."""
        return vars(self).get("credentials")

    @property
    def known_files(self) -> SiteFiles | None:
        """Records and held-out records, if they have no fault."""
        return vars(self).get("files")

    @property
    def known_pool(self) -> tuple[PoolSample, ...]:
        """Public questions that were named, if they have no fault."""
        found: tuple[PoolSample, ...] = vars(self).get("pool", ())
        return found

    @property
    def known_plan(self) -> StudyPlan | None:
        """The plan, if there is one that can be read."""
        return vars(self).get("plan")
