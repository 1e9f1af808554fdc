"""Clients whose definition of the protocol is older, or another server's: theirs must be read, and ours be readable."""

import pytest
from google.protobuf import unknown_fields

from cases import ONE, wire_name
from rpcs import channel
from server import PATIENCE

PROTOS = "tests/wire/oip/protos"


def send(server, method, Answer, message):
    call = channel(server).unary_unary(f"/inference.GRPCInferenceService/{method}")
    return Answer.FromString(call(message.SerializeToString(), timeout=PATIENCE))


def unread(message):
    """Paths of fields, at any depth, that the definition of this message does not have."""
    found = [f"{message.DESCRIPTOR.name} {field.field_number}" for field in unknown_fields.UnknownFieldSet(message)]
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            entry = descriptor.message_type.fields_by_name["value"].message_type
            each = value.values() if entry is not None else []
        elif hasattr(value, "DESCRIPTOR"):
            each = [value]
        else:
            each = value
        found += [path for one in each for path in unread(one)]
    return found


@pytest.fixture(scope="module")
def kserve(messages):
    return messages(PROTOS, "kserve_old.proto")


@pytest.mark.parametrize("typed", [False, True])
def test_clients_with_three_kinds_of_parameters(server, kserve, typed):
    """Older clients know bool, int64 and string parameters: what they send is understood, and an answer has no other kind."""
    image = ONE.inputs["image"]
    asked = kserve("inference.ModelInferRequest")(model_name="digits", id="42")
    asked.parameters["priority"].int64_param = 2
    asked.parameters["timeout"].int64_param = 60_000_000
    asked.parameters["colour"].string_param = "grey"
    asked.parameters["on"].bool_param = True
    tensor = asked.inputs.add(name="image", datatype=wire_name(image), shape=image.shape)
    if typed:
        tensor.contents.fp32_contents.extend(image.ravel().tolist())
    else:
        asked.raw_input_contents.append(image.tobytes())
    answer = send(server, "ModelInfer", kserve("inference.ModelInferResponse"), asked)
    assert (answer.id, answer.model_version) == ("42", "2")
    assert len(answer.raw_output_contents) == 1
    assert not unread(answer), f"an older client does not understand {unread(answer)}"


def test_clients_of_mlserver_read_metadata(server, messages):
    """Field 6 of ModelMetadataResponse means other things to other clients, so it is left out; tensors have nothing beyond
    field 3."""
    package = messages(PROTOS, "mlserver.proto")
    asked = package("inference.ModelMetadataRequest")(name="tagger")
    answer = send(server, "ModelMetadata", package("inference.ModelMetadataResponse"), asked)
    assert (answer.name, [tensor.name for tensor in answer.inputs]) == ("tagger", ["tokens", "weights"])
    assert not answer.parameters and not any(tensor.parameters for tensor in (*answer.inputs, *answer.outputs))
    assert not unread(answer), f"a client of MLServer does not understand {unread(answer)}"


def test_field_6_of_the_metadata_is_not_on_the_wire(server, messages):
    """The bytes themselves: fields 1 to 5 and no other."""
    own = messages("proto", "inference/grpc_service.proto")
    asked = own("inference.ModelMetadataRequest")(name="digits")
    answer = send(server, "ModelMetadata", own("inference.ModelMetadataResponse"), asked)
    assert not unread(answer), f"fields that torchlane's own definition does not have: {unread(answer)}"
    assert {field.number for field, _ in answer.ListFields()} == {1, 2, 3, 4, 5}
