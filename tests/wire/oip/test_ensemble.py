"""The sample ensemble: raw pixels in, digits out, as its three models give them one after the other."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import rest
from cases import DATA, TOLERANCE, golden_digits
from rpcs import Calls, arrays, put, raw_of, request

ROWS = 16


def held_out():
    """The first held-out images as 8-bit grey pictures UINT8 [16, 8, 8], and what they show."""
    records = np.frombuffer((DATA / "digits/heldout.bin").read_bytes()[4:], np.uint8).reshape(-1, 65)[:ROWS]
    pixels = np.rint(records[:, :64].astype(np.float64) * 255 / 16).astype(np.uint8)
    return pixels.reshape(ROWS, 8, 8), records[:, 64]


@pytest.fixture(scope="module")
def calls(server):
    return Calls(server)


def infer(calls, model, name, datatype, array, **fields):
    return arrays(calls.ModelInfer(request(model, (name, datatype, array.shape), raw=[array.tobytes()], **fields)))


def test_grpc_reads_pixels_as_the_models_one_by_one(calls):
    """An ensemble answers bit by bit what its steps answer when they are called one after the other."""
    image, labels = held_out()
    whole = infer(calls, "read-digits", "image", "UINT8", image)
    assert list(whole) == ["digits", "scores", "probabilities"]
    ink = infer(calls, "digits-decode", "image", "UINT8", image)["ink"]
    steps = infer(calls, "digits", "image", "FP32", ink, model_version="2")
    steps |= infer(calls, "digits-top", "probabilities", "FP32", steps["probabilities"])
    for name, found in whole.items():
        assert found.tobytes() == steps[name].tobytes(), f"{name} is not what the steps give"
    # 255 steps of grey instead of 16: what is nearly certain stays so.
    sure = golden_digits("2")[:ROWS].max(1) > 0.9
    assert sure.sum() > ROWS / 2
    assert (whole["digits"][sure, 0] == labels[sure]).all()
    assert np.abs(whole["scores"][:, 0] - whole["probabilities"].max(1)).max() <= TOLERANCE


def test_rest_reads_pixels_in_json_and_in_bytes(server, calls):
    """JSON and bytes behind JSON are answered with the same tensors as gRPC."""
    image, _ = held_out()
    expected = infer(calls, "read-digits", "image", "UINT8", image)
    as_json = rest.infer(server, "read-digits", {"inputs": [rest.tensor("image", "UINT8", image)]}).outputs()
    head = {"inputs": [rest.binary_tensor("image", "UINT8", image.shape, image.tobytes())], "parameters": {"binary_data_output": True}}
    as_bytes = rest.infer(server, "read-digits", *rest.with_tail(head, image.tobytes())).outputs()
    for name, array in expected.items():
        assert as_json[name]["shape"] == as_bytes[name]["shape"] == list(array.shape)
        assert np.array(as_json[name]["data"], array.dtype).tobytes() == array.tobytes(), f"{name} in JSON"
        assert as_bytes[name]["raw"] == array.tobytes(), f"{name} in bytes"


def test_pictures_may_have_any_size(server):
    """A dimension of -1 is any size: each pixel four times as high and wide is the same picture."""
    image, labels = held_out()
    large = image[:2].repeat(4, axis=1).repeat(4, axis=2)
    body = {"inputs": [rest.tensor("image", "UINT8", large)], "outputs": [{"name": "digits"}]}
    found = rest.infer(server, "read-digits", body).outputs()
    assert list(found) == ["digits"] and found["digits"]["shape"] == [2, 3]
    assert found["digits"]["data"][::3] == labels[:2].tolist()


def test_an_ensemble_is_described_like_a_model(server, calls):
    """Metadata and configuration say what goes in and out, which models are behind it, and that its platform is `ensemble`."""
    found = calls.ModelMetadata(pb.ModelMetadataRequest(name="read-digits"))
    assert [(each.name, each.datatype, list(each.shape)) for each in found.inputs] == [("image", "UINT8", [-1, -1, -1])]
    assert [each.name for each in found.outputs] == ["digits", "scores", "probabilities"]
    config = calls.ModelConfig(pb.ModelConfigRequest(name="read-digits")).config
    as_json = rest.get(server, "/v2/models/read-digits").ok()
    assert (found.platform, config.platform, as_json["platform"]) == ("ensemble",) * 3
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["digits-decode", "digits", "digits-top"]
    rest.get(server, "/v2/models/read-digits/ready").ok()


def test_the_most_probable_digits_come_as_texts(calls):
    """`classification` names the labels of the ensemble's output."""
    image, labels = held_out()
    asked = request("read-digits", ("image", "UINT8", [1, 8, 8]), raw=[image[:1].tobytes()])
    asked.outputs.add(name="probabilities")
    put(asked.outputs[0].parameters, "classification", int64=1)
    ((datatype, shape, bits),) = raw_of(calls.ModelInfer(asked)).values()
    assert (datatype, list(shape)) == ("BYTES", [1, 1])
    assert bits[4:].decode().endswith(f":{labels[0]}:{labels[0]}"), bits


def test_what_is_no_picture_is_refused(server):
    """A tensor of another datatype or rank is the caller's mistake, and names the ensemble's input."""
    image, _ = held_out()
    wrong = rest.tensor("image", "FP32", image[:1].astype(np.float32))
    rest.refused(rest.infer(server, "read-digits", {"inputs": [wrong]}), 400, "image", "UINT8")
    flat = rest.tensor("image", "UINT8", image[0])
    rest.refused(rest.infer(server, "read-digits", {"inputs": [flat]}), 400, "image", "shape")
