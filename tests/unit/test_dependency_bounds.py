"""The bounds of pyproject.toml, the exact versions and the generated code agree."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

from lada_protocol.wire import lada_pb2, lada_pb2_grpc
from tests.lowest_versions import exact_versions, lower_bound, requirements

ROOT = Path(__file__).parents[2]
BOUNDS = requirements(sorted([ROOT / "pyproject.toml", *ROOT.glob("*/pyproject.toml")]))


def lowest(name: str) -> Version:
    return Version(lower_bound(BOUNDS[name]))


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_requirement_has_a_lower_bound_and_admits_the_exact_version(name):
    assert lower_bound(BOUNDS[name])
    assert exact_versions()[name] in BOUNDS[name].specifier


def test_the_lowest_grpcio_and_protobuf_load_the_generated_code():
    generator = Version(lada_pb2_grpc.GRPC_GENERATED_VERSION)
    source = Path(lada_pb2.__file__).read_text()
    protobuf = re.search(r"^# Protobuf Python Version: (.+)$", source, flags=re.MULTILINE)
    assert protobuf is not None
    assert lowest("grpcio") == lowest("grpcio-tools") == generator
    assert lowest("protobuf") == Version(protobuf[1])


def test_make_proto_generates_with_the_generator_of_the_generated_code():
    named = re.search(r"^GENERATOR := grpcio-tools==(.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert named is not None
    assert Version(named[1]) == Version(lada_pb2_grpc.GRPC_GENERATED_VERSION)
