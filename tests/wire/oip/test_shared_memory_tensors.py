"""System shared memory: what is read and written where, for tensors that lie in a region."""

import os

import numpy as np
import pytest

import rest
from cases import ONE, TEXT
from regions import shared
from rpcs import Calls, Code, arrays, check, of_case, put, refused, request
from shared_memory import NO, NO_HTTP, SIZE, digits_in_region, json_in_region, place


def test_an_input_from_a_region(shm, region):
    """An input is read from its place in the region, through whichever door the region was registered."""
    calls = Calls(shm.server)
    asked = digits_in_region(region)
    check(ONE, calls.ModelInfer(asked))
    body = json_in_region()
    body["outputs"] = [{"name": "probabilities", "parameters": {"binary_data": False}}]
    output = rest.infer(shm.server, "digits", body).outputs()["probabilities"]
    ONE.check({"probabilities": np.array(output["data"]).reshape(output["shape"])}.get)


def test_offsets_add_up(shm):
    """The tensor's offset counts from the region's, and the region's from the file's beginning."""
    image = ONE.inputs["image"]
    with shared(SIZE, bytes(64 + 32) + image.tobytes()) as path:
        shm.register("region", f"/{path.name}", 32 + image.nbytes, offset=64)
        asked = request("digits", ("image", "FP32", image.shape))
        place(asked.inputs[0].parameters, image.nbytes, 32)
        check(ONE, Calls(shm.server).ModelInfer(asked))


def test_raw_entries_skip_inputs_in_shared_memory(shm, region):
    """An input in shared memory has no raw entry: the first raw entry is that of the first input which is not there."""
    tokens, weights = TEXT.inputs["tokens"], TEXT.inputs["weights"]
    with open(region, "r+b") as out:
        out.write(tokens.tobytes())
    tensors = [("tokens", "INT64", tokens.shape), ("weights", "FP32", weights.shape)]
    asked = request("tagger", *tensors, raw=[weights.tobytes()])
    place(asked.inputs[0].parameters, tokens.nbytes)
    calls = Calls(shm.server)
    check(TEXT, calls.ModelInfer(asked))
    # With an entry for it as well there is one too many.
    asked.raw_input_contents.insert(0, tokens.tobytes())
    refused(lambda: calls.ModelInfer(asked), Code.INVALID_ARGUMENT)


def test_contents_beside_shared_memory_are_refused(shm, region):
    """An input lies in shared memory or has contents, not both."""
    asked = digits_in_region(region)
    asked.inputs[0].contents.fp32_contents.extend(ONE.inputs["image"].ravel().tolist())
    refused(lambda: Calls(shm.server).ModelInfer(asked), Code.INVALID_ARGUMENT)
    both = json_in_region()
    both["inputs"][0]["data"] = ONE.inputs["image"].ravel().tolist()
    rest.refused(rest.infer(shm.server, "digits", both), 400)


def test_outputs_to_shared_memory_keep_an_empty_raw_entry(shm, region):
    """An output that goes to shared memory has an empty raw entry in its place, so entries and outputs agree by order."""
    asked = of_case(TEXT)
    for name in ("tags", "scores", "total"):
        asked.outputs.add(name=name)
    scores = TEXT.outputs["scores"]
    place(asked.outputs[1].parameters, scores.nbytes, 512)
    response = Calls(shm.server).ModelInfer(asked)
    assert [output.name for output in response.outputs] == ["tags", "scores", "total"]
    assert [len(raw) for raw in response.raw_output_contents] == [TEXT.outputs["tags"].nbytes, 0, 4]
    assert list(response.outputs[1].shape) == list(scores.shape)
    assert response.outputs[1].parameters["shared_memory_region"].string_param == "region"
    written = region.read_bytes()
    assert np.array_equal(np.frombuffer(written[512 : 512 + scores.nbytes], "<f4").reshape(scores.shape), scores)
    assert not any(written[:512]) and not any(written[512 + scores.nbytes :]), "something was written beside it"


def test_outputs_to_shared_memory_over_rest(shm, region):
    """The JSON of an output that went to shared memory has no data, and no parameters: clients in C++ take those for bytes."""
    image = rest.tensor("image", "FP32", ONE.inputs["image"])
    where = {"shared_memory_region": "region", "shared_memory_byte_size": 80, "shared_memory_offset": 8}
    body = {"inputs": [image], "outputs": [{"name": "probabilities", "parameters": where}]}
    answer = rest.infer(shm.server, "digits", body)
    output = answer.outputs()["probabilities"]
    assert not {"data", "raw", "parameters"} & set(output), output
    written = np.frombuffer(region.read_bytes()[8:88], "<f4").reshape(output["shape"])
    ONE.check({"probabilities": written}.get)


# The image has 512 bytes.
WRONG_PLACES = [(0, SIZE + 1), (SIZE, 512), (SIZE - 511, 512), (-1, 512), (0, -512), (2**62, 512), (0, 508), (0, 516), (0, 0)]


@pytest.mark.parametrize("offset,size", WRONG_PLACES)
def test_an_input_lies_within_its_region(shm, region, offset, size):
    """Offset and size of an input are not negative, end within the region, and the size is that of its shape."""
    asked = digits_in_region(region, size, offset)
    refused(lambda: Calls(shm.server).ModelInfer(asked), NO)
    bad = json_in_region(shared_memory_offset=offset, shared_memory_byte_size=size)
    rest.refused(rest.infer(shm.server, "digits", bad), NO_HTTP)


@pytest.mark.parametrize("offset,size", [(SIZE - 79, 80), (0, 79), (-8, 80), (0, -80), (2**62, 80), (0, SIZE + 1)])
def test_an_output_is_written_within_its_region(shm, region, offset, size):
    """An output that does not fit its place is refused, and nothing is written."""
    asked = of_case(ONE)
    asked.outputs.add(name="probabilities")
    place(asked.outputs[0].parameters, size, offset)
    refused(lambda: Calls(shm.server).ModelInfer(asked), NO)
    assert region.stat().st_size == SIZE and not any(region.read_bytes()), "something was written"


def test_a_place_needs_its_size_and_a_region(shm, region):
    """shared_memory_byte_size is needed with shared_memory_region; a region that nobody registered is refused."""
    asked = digits_in_region(region)
    del asked.inputs[0].parameters["shared_memory_byte_size"]
    calls = Calls(shm.server)
    refused(lambda: calls.ModelInfer(asked), Code.INVALID_ARGUMENT, "shared_memory_byte_size")
    refused(lambda: calls.ModelInfer(digits_in_region(region, name="nope")), NO, "nope")
    rest.refused(rest.infer(shm.server, "digits", json_in_region(shared_memory_region="nope")), NO_HTTP, "nope")


WRONG_KINDS = [("region", {"int64": 1}), ("byte_size", {"string": "512"}), ("offset", {"bool": True})]


@pytest.mark.parametrize("key,kind", WRONG_KINDS)
def test_the_parameters_of_a_place_have_their_kinds(shm, region, key, kind):
    """shared_memory_region is a string, the size and the offset are int64."""
    asked = digits_in_region(region)
    put(asked.inputs[0].parameters, f"shared_memory_{key}", **kind)
    refused(lambda: Calls(shm.server).ModelInfer(asked), Code.INVALID_ARGUMENT, f"shared_memory_{key}")


def test_a_region_that_shrinks_does_not_end_the_server(shm, region):
    """A file that was cut short after its registration fails the request, not the process; nor does an output make it grow."""
    calls = Calls(shm.server)
    reading = digits_in_region(region)
    os.truncate(region, 0)
    refused(lambda: calls.ModelInfer(reading), NO | {Code.INTERNAL, Code.UNAVAILABLE})
    writing = of_case(ONE)
    writing.outputs.add(name="probabilities")
    place(writing.outputs[0].parameters, 80)
    refused(lambda: calls.ModelInfer(writing), NO | {Code.INTERNAL, Code.UNAVAILABLE})
    assert shm.server.is_alive() and region.stat().st_size == 0
    check(ONE, calls.ModelInfer(of_case(ONE)))


def test_an_unregistered_region_is_not_used(shm, region):
    """After its end a region is refused, and its file is still the caller's."""
    asked = digits_in_region(region)
    shm.unregister("region")
    refused(lambda: Calls(shm.server).ModelInfer(asked), NO, "region")
    assert region.exists()


def test_a_request_reads_what_was_there_when_it_came(shm, region):
    """Input and output may share a place: the answer is that of the input as it was."""
    image = ONE.inputs["image"]
    asked = digits_in_region(region)
    asked.outputs.add(name="probabilities")
    place(asked.outputs[0].parameters, 80)
    Calls(shm.server).ModelInfer(asked)
    written = np.frombuffer(region.read_bytes()[:80], "<f4").reshape(2, 10)
    ONE.check({"probabilities": written}.get)
    assert region.read_bytes()[80 : image.nbytes] == image.tobytes()[80:]


def test_shared_memory_on_a_stream(shm, region):
    """Requests of a stream may lie in shared memory too."""
    (answer,) = list(Calls(shm.server).ModelStreamInfer(iter([digits_in_region(region)])))
    assert not answer.error_message, answer.error_message
    ONE.check(arrays(answer.infer_response).get)
