"""The generated code belongs to the .proto file beside it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pb2

from lada_protocol.wire import lada_pb2
from lada_protocol.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES

PROTOCOL = Path(__file__).parents[4] / "protocol"


def test_the_committed_code_was_generated_from_the_committed_proto(tmp_path):
    # In a process of its own: the compiler's native module and TenSEAL's export the same C++
    # symbols, and a process that loads both dies or hangs.
    out = tmp_path / "descriptors"
    package = find_spec("grpc_tools")
    assert package is not None
    assert package.origin is not None
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            f"-Ilada_protocol/wire={PROTOCOL}",
            f"-I{Path(package.origin).parent / '_proto'}",
            f"--descriptor_set_out={out}",
            "lada_protocol/wire/lada.proto",
        ],
        check=True,
    )
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto()
    lada_pb2.DESCRIPTOR.CopyToProto(committed)
    for one in (fresh, committed):
        for message in one.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert fresh == committed


def test_the_largest_frames_fit_the_frame_limit():
    data = lada_pb2.Chunk(offset=2**63, data=bytes(CHUNK_BYTES), sha256=bytes(32))
    opening = lada_pb2.Opening(header=bytes(64 * 1024), signature=bytes(64))
    for frame in (lada_pb2.PostFrame(chunk=data), lada_pb2.PostFrame(opening=opening)):
        assert frame.ByteSize() <= MAX_FRAME_BYTES
