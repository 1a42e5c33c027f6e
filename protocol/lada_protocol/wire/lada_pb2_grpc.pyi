# Types of the generated module, kept by hand: the gRPC plugin writes none. Handlers and calls are
# attributes here, so that an implementation may give them Python's own names.
from collections.abc import Callable, Iterable, Iterator

import grpc

from lada_protocol.wire.lada_pb2 import (
    Chunk,
    FetchRequest,
    ListReply,
    ListRequest,
    PostFrame,
    ProgressReply,
    ProgressRequest,
    Receipt,
)

class BoardStub:
    Post: grpc.StreamUnaryMultiCallable
    Progress: grpc.UnaryUnaryMultiCallable
    List: grpc.UnaryUnaryMultiCallable
    Fetch: grpc.UnaryStreamMultiCallable
    def __init__(self, channel: grpc.Channel) -> None: ...

class BoardServicer:
    Post: Callable[[Iterator[PostFrame], grpc.ServicerContext], Receipt]
    Progress: Callable[[ProgressRequest, grpc.ServicerContext], ProgressReply]
    List: Callable[[ListRequest, grpc.ServicerContext], ListReply]
    Fetch: Callable[[FetchRequest, grpc.ServicerContext], Iterable[Chunk]]

add_BoardServicer_to_server: Callable[[BoardServicer, grpc.Server], None]  # noqa: N816 - the plugin's name
