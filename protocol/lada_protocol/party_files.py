"""What every party reads from its own disk before it says a word: settings, roster, identity.

The one module of this package that touches disk, environment and clock: both ends of the wire read
the same files by the same rules, and neither may import the other.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Final, Generic, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, Field, model_validator

from lada_protocol.events import EVENTS_FILE, EventLog
from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATION_BYTES,
    RevocationList,
    parse_revocations,
)
from lada_protocol.identity.credentials import (
    MAX_PASSPHRASE_BYTES,
    UNLOCK_FILE_VARIABLE,
    UNLOCK_VARIABLE,
    Credentials,
    IdentityFile,
    Passphrase,
    check_signing_key,
    load_private_key,
    parse_credentials,
    parse_passphrase,
)
from lada_protocol.identity.roster import Roster, parse_roster
from lada_protocol.kinds import Role
from lada_protocol.settings import Settings, expanded, parse_settings
from lada_protocol.wire.limits import split_address
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import LadaError, ParameterError, PeerError
from lada_secure.logs import LogSettings
from lada_secure.models.calling_settings import LEAST_TOKENS, MAX_TOKENS, Calling, Style
from lada_secure.models.placement import (
    DEVICE_PATTERN,
    DeviceMap,
    Dtype,
    Placement,
    Quantization,
)
from lada_secure.storage.identity_folder import IdentityFolder
from lada_secure.storage.line_file import open_line_file
from lada_secure.storage.whole_files import read_file

LOG = logging.getLogger(__name__)
_NAME_IN_CACHE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
S = TypeVar("S", bound=Settings)
T = TypeVar("T")


class PartySettings(Settings):
    """The keys of every party's settings file. Relative paths are relative to the file's folder.

    role: whose settings they are; None where nobody says it.
    """

    role: ClassVar[Role | None] = None

    party: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    identity: Annotated[
        Path, Field(description="folder with ca, tls and sign certificates and keys")
    ]
    roster: Annotated[Path, Field(description="roster file, agreed out of band")]
    state_dir: Annotated[Path, Field(description="everything this party writes")]
    passphrase_file: Annotated[
        Path | None, Field(description="passphrase of encrypted private keys")
    ] = None
    transport: TransportSettings = TransportSettings()
    log: LogSettings = LogSettings()

    def beside(self, folder: Path) -> Self:
        """See `Settings.beside`. Raises: ParameterError: also where folders do not lie apart."""
        found = super().beside(folder)
        found.check_folders()
        return found

    def check_folders(self) -> None:
        """Nothing is written into the folder of the keys, by whichever path it is named.

        Raises: ParameterError: the state folder lies there.
        """
        if self.state_dir.resolve().is_relative_to(self.identity.resolve()):
            raise ParameterError(
                f"state_dir {self.state_dir} lies in the folder of the keys; name another place"
            )

    @property
    def passphrase(self) -> Passphrase | None:
        """Of the private keys; see `read_passphrase`."""
        return read_passphrase(self.passphrase_file)

    def credentials(self) -> Credentials:
        """The identity folder, checked to be this party's; see `load_credentials`.

        Raises: ParameterError: also of a party of another role than these settings are for.
        """
        found = load_credentials(self.identity, expected_id=self.party, passphrase=self.passphrase)
        if self.role not in (None, found.name.role):
            raise ParameterError(
                f"{self.identity}: its certificates name {found.name.uri}, and these are the "
                f"settings of a {self.role}; use the identity folder of the {self.role}, or the "
                f"settings of the {found.name.role}"
            )
        return found


class ModelSettings(Settings):
    """The table `[model]` of a site's and the coordinator's settings.

    How its model is called, and where its weights lie; see `Calling` and `Placement`.
    """

    style: Style = "plain"
    template: Annotated[
        Path | None, Field(description="jinja2 file that shows {{ question }}, in place of style")
    ] = None
    max_tokens: Annotated[int, Field(ge=LEAST_TOKENS, le=2**20)] = MAX_TOKENS
    device: Annotated[
        str, Field(pattern=rf"^({DEVICE_PATTERN})$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    dtype: Annotated[Dtype, Field(description="of the frozen base model")] = "float32"
    quantization: Annotated[
        Quantization | None, Field(description="of the frozen base model, on CUDA alone")
    ] = None
    device_map: Annotated[
        DeviceMap | None, Field(description="auto: the base model over all CUDA devices")
    ] = None
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.template is not None and self.style != "plain":
            raise ValueError('a template takes the place of style "chat"; name one of them')
        try:
            _ = self.placement
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def calling(self) -> Calling:
        """The same for whoever loads the model."""
        return Calling(style=self.style, template=self.template, max_tokens=self.max_tokens)

    @property
    def placement(self) -> Placement:
        """The same for whoever loads the model."""
        return Placement(
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            device_map=self.device_map,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def _dialled(address: str) -> str:
    try:
        split_address(address)
    except ParameterError as error:
        raise ValueError(str(error)) from error
    return address


# host:port, or [v6]:port.
Address = Annotated[str, AfterValidator(_dialled)]


def model_beside(reference: str, folder: Path, *, key: str) -> str:
    """A model that a settings file in `folder` names: a plain name, or its whole path.

    A plain name is a folder in `cache_dir`; anything with a slash, or a leading dot or tilde, is a
    path, relative to the file as all others are.

    Args: key: the setting that names it. Raises: ParameterError: see `Settings.beside`; a URL.
    """
    if "://" in reference:
        raise ParameterError(
            f"{key}: {reference} is a URL; a model is a folder, and an LLM behind a server a table "
            "with its endpoint, see docs/llm-endpoint.md"
        )
    if _NAME_IN_CACHE.fullmatch(reference):
        return reference
    return str(folder / expanded(Path(reference), key=key))


class DiallingSettings(PartySettings):
    """Of a party that dials the coordinator: a site, or the auditor."""

    coordinator: Annotated[Address, Field(description="host:port that this party dials")]
    wait_s: Annotated[float, Field(gt=0)] = 600.0

    @model_validator(mode="after")
    def _can_be_dialled(self) -> Self:
        if not split_address(self.coordinator)[1]:
            raise ValueError(f"coordinator: {self.coordinator}: nobody can be dialled at port 0")
        return self


def read_settings(path: Path, model: type[S]) -> S:
    """Read one TOML settings file; relative paths in it are relative to the file.

    Raises: ParameterError: unreadable, not TOML, unknown or missing keys.
    """
    return parse_settings(read_file(path), model, where=str(path)).beside(path.resolve().parent)


def read_roster(path: Path, *, pinned: str | None = None) -> Roster:
    """The roster file, whose hash must be the pinned one where a party pins one.

    Raises: ParameterError: missing, malformed, or another roster than agreed.
    """
    if not path.exists():
        raise ParameterError(
            f"roster {path}: there is no such file; `lada init join` puts it there"
        )
    try:
        roster = parse_roster(read_file(path, what="roster "))
    except PeerError as error:
        raise ParameterError(f"roster {path}: {error}") from error
    if pinned is not None and pinned != roster.hash:
        if not pinned.strip("0"):
            raise ParameterError(
                f"roster {path}: none is pinned yet, roster_sha256 is all zeros; run `lada init "
                "join` with the study's bundle"
            )
        raise ParameterError(
            f"roster {path} has the hash {roster.hash}, roster_sha256 pins {pinned}; compare the "
            "fingerprints with the other parties before changing the pin"
        )
    return roster


def read_passphrase(file: Path | None) -> Passphrase | None:
    """The passphrase of private keys, or none.

    From `file`, else from LADA_KEY_PASSPHRASE, else from the file that LADA_KEY_PASSPHRASE_FILE
    names. An empty variable is none: so compose files set one that nobody has given.

    Raises: ParameterError: the file cannot be read, or the passphrase is too short.
    """
    if file is None:
        value = os.environ.get(UNLOCK_VARIABLE)
        if value:
            return parse_passphrase(os.fsencode(value), where=UNLOCK_VARIABLE)
        named = os.environ.get(UNLOCK_FILE_VARIABLE)
        if not named:
            return None
        file = Path(named)
    try:
        with file.open("rb") as opened:
            return parse_passphrase(opened.read(MAX_PASSPHRASE_BYTES + 64), where=str(file))
    except OSError as error:
        raise ParameterError(f"passphrase file {file}: {error.strerror}") from error


def load_credentials(
    folder: Path, *, expected_id: str | None = None, passphrase: Passphrase | None = None
) -> Credentials:
    """Read and check the files that `lada ca issue` writes.

    Args: passphrase: of encrypted keys; by default what LADA_KEY_PASSPHRASE holds, if anything.
    Raises: ParameterError: a file is missing, too long, expired or does not fit the others.
    """
    secret = passphrase or read_passphrase(None)
    try:
        return parse_credentials(
            partial(IdentityFolder(folder).read, max_bytes=MAX_CERTIFICATE_BYTES),
            at=datetime.now(UTC),
            expected_id=expected_id,
            passphrase=secret,
        )
    except ParameterError as error:
        if str(error).startswith(str(folder)):
            raise
        raise ParameterError(f"{folder}: {error}") from error


def load_signing_key(folder: Path, *, passphrase: Passphrase | None = None) -> Ed25519PrivateKey:
    """The signing key of an identity folder, whose certificates may have expired.

    Raises: ParameterError: missing, encrypted under another passphrase, or no such key.
    """
    file = IdentityFile.SIGNING_KEY
    pem = IdentityFolder(folder).read(file, MAX_CERTIFICATE_BYTES)
    return check_signing_key(load_private_key(file, pem, passphrase or read_passphrase(None)))


class Renewed(Generic[T]):
    """The newest usable value of some files. Thread-safe.

    Args: stamp: changes when the files do; asked on every look, so it must be cheap. load: reads
      the files, given the value so far (None at first). refused: told once of every change that
      could not be used.
    Raises: LadaError: the first value cannot be read.
    """

    def __init__(
        self,
        stamp: Callable[[], Hashable],
        load: Callable[[T | None], T],
        refused: Callable[[LadaError], None],
    ) -> None:
        self._stamp = stamp
        self._load = load
        self._refused = refused
        self._lock = threading.Lock()
        self._seen = stamp()
        self._value = load(None)

    def current(self) -> T:
        """The value, read again if the files changed since the last look."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._value = self._load(self._value)
                except LadaError as error:
                    self._refused(error)
            return self._value


class LiveIdentity:
    """A party's certificates and keys, and what the CA has revoked, as they stand now.

    The identity folder is read again whenever its files change. What cannot be used never replaces
    what can: the change is logged, and the old content stays in force.

    Args: passphrase: of encrypted keys; by default what LADA_KEY_PASSPHRASE holds, if anything.
    Raises: ParameterError: as `load_credentials`, or the roster lists other keys.
    """

    def __init__(
        self, folder: Path, *, party_id: str, roster: Roster, passphrase: Passphrase | None = None
    ) -> None:
        self.passphrase = passphrase or read_passphrase(None)
        files, revoked = IdentityFolder(folder), IdentityFile.REVOCATIONS
        others = [file for file in IdentityFile if file is not revoked]
        refused = partial(LOG.error, "%s: a changed file is not used: %s", folder)

        def load(_: Credentials | None) -> Credentials:
            loaded = load_credentials(folder, expected_id=party_id, passphrase=self.passphrase)
            loaded.check_roster(roster)
            return loaded

        def load_revocations(known: RevocationList | None) -> RevocationList | None:
            stays = "" if known is None else f"list {known.number}"
            if files.stamp(revoked) is None:
                if known is None:
                    return None
                raise ParameterError(f"{revoked} is gone; {stays} stays in force until a newer one")
            try:
                found = parse_revocations(files.read(revoked, MAX_REVOCATION_BYTES), ca=ca)
            except PeerError as error:
                raise ParameterError(f"{revoked}: {error}") from error
            if known is not None and found.number < known.number:
                raise ParameterError(
                    f"{revoked}: list {found.number} is older than {stays}, which stays in force"
                )
            return found

        # The newest usable certificates and keys.
        self.credentials = Renewed(
            lambda: tuple(files.stamp(file) for file in others), load, refused
        ).current
        ca = self.credentials().ca
        # The newest list of revoked certificates; None where there never was one.
        self.revocations = Renewed(lambda: files.stamp(revoked), load_revocations, refused).current


def open_event_log(party: str, state_dir: Path) -> EventLog:
    """The party's progress events for its operator, appended line by line to its state folder.

    Raises: TransportError: the file cannot be opened.
    """
    return EventLog(party=party, sink=open_line_file(state_dir / EVENTS_FILE), clock=time.time)
