from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PostFrame(_message.Message):
    __slots__ = ("opening", "chunk")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    chunk: Chunk
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("header", "signature")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    signature: bytes
    def __init__(self, header: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data", "sha256")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    sha256: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ("message_sha256",)
    MESSAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    message_sha256: bytes
    def __init__(self, message_sha256: _Optional[bytes] = ...) -> None: ...

class ProgressReply(_message.Message):
    __slots__ = ("on_board", "offset")
    ON_BOARD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    on_board: bool
    offset: int
    def __init__(self, on_board: bool = ..., offset: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("sequence", "message_sha256")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    message_sha256: bytes
    def __init__(self, sequence: _Optional[int] = ..., message_sha256: _Optional[bytes] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("after_sequence", "wait_ms")
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    wait_ms: int
    def __init__(self, after_sequence: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("sequence", "header", "signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    header: bytes
    signature: bytes
    def __init__(self, sequence: _Optional[int] = ..., header: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("message_sha256", "offset")
    MESSAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    message_sha256: bytes
    offset: int
    def __init__(self, message_sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...
