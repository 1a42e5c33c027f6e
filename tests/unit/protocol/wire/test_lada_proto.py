"""The generated code belongs to the .proto file beside it."""

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from lada_protocol.wire import lada_pb2, lada_pb2_grpc
from lada_protocol.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES

PROTOCOL = Path(__file__).parents[4] / "protocol"
WIRE = PROTOCOL / "lada_protocol" / "wire"


def protoc(*words):
    # In a process of its own: the compiler's native module and TenSEAL's export the same C++
    # symbols, and a process that loads both dies or hangs.
    package = find_spec("grpc_tools")
    assert package is not None
    assert package.origin is not None
    includes = (f"-Ilada_protocol/wire={PROTOCOL}", f"-I{Path(package.origin).parent / '_proto'}")
    compiler = (sys.executable, "-m", "grpc_tools.protoc")
    subprocess.run([*compiler, *includes, *words, "lada_protocol/wire/lada.proto"], check=True)


def test_the_committed_code_was_generated_from_the_committed_proto(tmp_path):
    out = tmp_path / "descriptors"
    protoc(f"--descriptor_set_out={out}")
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto()
    lada_pb2.DESCRIPTOR.CopyToProto(committed)
    for file in (fresh, committed):
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert fresh == committed


@pytest.mark.skipif(
    version("grpcio-tools") != lada_pb2_grpc.GRPC_GENERATED_VERSION,
    reason="needs the generator of the committed code, which `make test-lowest` has",
)
def test_the_generator_of_the_committed_code_writes_the_same_bytes(tmp_path):
    protoc(*(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")))
    fresh = {path.name: path.read_bytes() for path in tmp_path.rglob("lada_pb2*")}
    assert len(fresh) == 3
    assert fresh == {name: (WIRE / name).read_bytes() for name in fresh}


def test_the_largest_frames_fit_the_frame_limit():
    data = lada_pb2.Chunk(offset=2**63, data=bytes(CHUNK_BYTES), sha256=bytes(32))
    opening = lada_pb2.Opening(header=bytes(64 * 1024), signature=bytes(64))
    for frame in (lada_pb2.PostFrame(chunk=data), lada_pb2.PostFrame(opening=opening)):
        assert frame.ByteSize() <= MAX_FRAME_BYTES
