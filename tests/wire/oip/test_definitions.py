"""torchlane's definition of the protocol beside Triton's, which tritonclient brings: one and the same on the wire."""

import os
import subprocess

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from server import ROOT

# The protocol's own calls, and Triton's. All have one request and one answer but the last.
CORE = {"ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"}
STREAM = "ModelStreamInfer"
SERVICE = "inference.GRPCInferenceService"


def own_files(folder):
    out = folder / "set"
    command = [os.environ["WIRE_PYTHON"], "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={out}", "inference/grpc_service.proto"], check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def tritons_files():
    found = []
    for module in (service_pb2, model_config_pb2):
        found.append(descriptor_pb2.FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(found[-1])
    return found


def all_messages(messages, within=""):
    """(name, message) of each, those within others too."""
    for message in messages:
        name = within + message.name
        yield name, message
        yield from all_messages(message.nested_type, f"{name}.")


def fields(files):
    """(message, number) -> name, type, whether repeated, and the oneof that it is in. Entries of maps are messages too."""
    found = {}
    for file in files:
        for name, message in all_messages(file.message_type):
            for field in message.field:
                oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
                found[name, field.number] = (field.name, field.type, field.type_name, field.label, oneof)
    return found


def enums(files):
    """(enum, number) -> name."""
    found = {}
    for file in files:
        within = [(f"{name}.", enum) for name, message in all_messages(file.message_type) for enum in message.enum_type]
        for prefix, enum in [*(("", enum) for enum in file.enum_type), *within]:
            found |= {(prefix + enum.name, value.number): value.name for value in enum.value}
    return found


def calls(files):
    """(service, call) -> request, answer, and which of the two are streams."""
    found = {}
    for file in files:
        for service in file.service:
            for call in service.method:
                how = (call.input_type, call.output_type, call.client_streaming, call.server_streaming)
                found[f"{file.package}.{service.name}", call.name] = how
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return own_files(tmp_path_factory.mktemp("own")), tritons_files()


def same(what, both):
    own, tritons = map(what, both)
    unlike = {key: (own.get(key), tritons.get(key)) for key in own.keys() | tritons.keys() if own.get(key) != tritons.get(key)}
    assert not unlike, f"torchlane's, Triton's: {unlike}"
    return own


def test_every_field_has_tritons_number_name_and_type(both):
    """Every message has the fields that Triton's has, each with its number, name, type and oneof, and no others."""
    found = same(fields, both)
    # Those on which clients of other servers would stumble, and one of each extension.
    assert ("ModelMetadataResponse", 6) not in found
    assert found["ModelInferRequest", 7][0] == "raw_input_contents"
    assert found["ModelInferResponse", 6][0] == "raw_output_contents"
    kinds = ["bool_param", "int64_param", "string_param", "double_param", "uint64_param"]
    assert [found["InferParameter", number][0] for number in range(1, 6)] == kinds
    assert found["ModelRepositoryParameter", 4][0] == "bytes_param"
    assert found["ModelStatistics", 9][0] == "response_stats"
    assert found["ModelConfig", 15][0] == "ensemble_scheduling"
    assert found["SystemSharedMemoryRegisterRequest", 2][0] == "key"
    assert len(found) > 300


def test_every_enum_has_tritons_numbers(both):
    """Datatypes, formats and kinds of a model's configuration have Triton's names and numbers."""
    found = same(enums, both)
    assert (found["DataType", 0], found["DataType", 13], found["DataType", 14]) == ("TYPE_INVALID", "TYPE_STRING", "TYPE_BF16")


def test_every_call_has_tritons_path_and_messages(both):
    """The service is inference.GRPCInferenceService; each call takes CALLRequest and answers CALLResponse, but ModelStreamInfer a
    stream of ModelInferRequest with one of ModelStreamInferResponse."""
    found = same(calls, both)
    assert {service for service, _ in found} == {SERVICE}
    assert {name for _, name in found} > CORE and len(found) == 20
    for (_, name), how in found.items():
        if name == STREAM:
            assert how == (".inference.ModelInferRequest", ".inference.ModelStreamInferResponse", True, True)
        else:
            assert how == (f".inference.{name}Request", f".inference.{name}Response", False, False)
