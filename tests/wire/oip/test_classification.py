"""The classification extension: the top n of an output as texts."""

import numpy as np
import pytest

import rest
from cases import digits
from rpcs import Calls, Code, of_case, put, raw_of, refused

CASE = digits("", 60, 4)


def expected(count):
    """(index, value) of the most probable, row by row."""
    rows = CASE.outputs["probabilities"]
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    return [[(int(index), float(row[index])) for index in places] for row, places in zip(rows, order)]


def compare(texts, count):
    """`texts`: rows of "value:index:label"."""
    wanted = expected(count)
    assert [len(row) for row in texts] == [len(row) for row in wanted]
    for row, want in zip(texts, wanted):
        for at, (text, (index, value)) in enumerate(zip(row, want)):
            found, place, label = text.split(":")
            assert (int(place), label) == (index, str(index)), f"rank {at}: {text} instead of index {index}"
            assert abs(float(found) - value) < 1e-3, f"rank {at}: {text} instead of {value}"


@pytest.mark.parametrize("count", [1, 3, 10, 99])
def test_classification_over_grpc(server, count):
    """Parameter classification: n gives BYTES [rows, n] of "value:index:label", the largest first, and never more than there
    are."""
    asked = of_case(CASE)
    asked.outputs.add(name="probabilities")
    put(asked.outputs[0].parameters, "classification", int64=count)
    ((datatype, shape, raw),) = raw_of(Calls(server).ModelInfer(asked)).values()
    count = min(count, 10)
    assert (datatype, shape) == ("BYTES", [4, count])
    texts = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    compare([texts[at : at + count] for at in range(0, len(texts), count)], count)


def test_classification_over_rest(server):
    """In JSON the texts are strings."""
    image = rest.tensor("image", "FP32", CASE.inputs["image"])
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    found = rest.infer(server, "digits", {"inputs": [image], "outputs": outputs}).outputs()["probabilities"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [4, 2])
    flat = np.array(found["data"]).ravel().tolist()
    compare([flat[at : at + 2] for at in range(0, 8, 2)], 2)


@pytest.mark.parametrize("kind", [{"int64": -1}, {"string": "3"}, {"bool": True}])
def test_classification_is_a_number(server, kind):
    """A negative number, or another kind, is refused."""
    asked = of_case(CASE)
    asked.outputs.add(name="probabilities")
    put(asked.outputs[0].parameters, "classification", **kind)
    refused(lambda: Calls(server).ModelInfer(asked), Code.INVALID_ARGUMENT, "classification")
