"""Inference over REST with tensors as JSON."""

import json

import numpy as np
import pytest

import rest
from cases import ALL, DTYPES, ONE, TEXT, wire_name
from lanes import LANES, lane_of

VALUES = {
    "BOOL": [True, False, True, True, False, True],
    "UINT8": [0, 1, 2, 127, 128, 255],
    "INT8": [-128, -1, 0, 1, 2, 127],
    "INT16": [-32768, -1, 0, 1, 256, 32767],
    "INT32": [-(2**31), -1, 0, 1, 65536, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1],
    "FP32": [0.0, -0.5, 1.5, 3.4028234663852886e38, 0.1, 1.17549435e-38],
    "FP64": [0.0, -0.5, 1.5, 1.7976931348623157e308, 0.1, -5e-324],
}


def body_of(case, **fields):
    inputs = [rest.tensor(name, wire_name(array), array) for name, array in case.inputs.items()]
    return {"inputs": inputs, **fields}


def path_of(case):
    version = f"/versions/{case.version}" if case.version else ""
    return f"/v2/models/{case.model}{version}/infer"


def array_of(output):
    return np.array(output["data"], DTYPES[output["datatype"]]).reshape(output["shape"])


def identity(server, datatype, shape, data):
    return rest.infer(server, "identity", {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]})


def bad(server, datatype, shape, data, *says):
    rest.refused(identity(server, datatype, shape, data), 400, *says)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_golden_outputs(server, case):
    """Every sample model answers what PyTorch answered: name, shape, datatype and data of each output."""
    answer = rest.post(server, path_of(case), body_of(case, id="42"))
    found = answer.ok()
    assert (found["model_name"], found["model_version"], found["id"]) == (case.model, case.used, "42")
    assert [output["name"] for output in found["outputs"]] == list(case.outputs)
    for output in found["outputs"]:
        assert isinstance(output["data"], list), "data is a list, also of a scalar"
        assert output["datatype"] == wire_name(case.outputs[output["name"]])
    case.check({output["name"]: array_of(output) for output in found["outputs"]}.get)
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers.get(rest.HEADER_LENGTH.lower()) in (None, str(len(answer.body)))


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_that_json_can_say(server, datatype):
    """Numbers keep every bit, INT64 beyond 2^53 and the ends of FP32 and FP64 too; BOOL is true and false."""
    output = identity(server, datatype, [2, 3], VALUES[datatype]).outputs()["output_0"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 3])
    found = np.array(output["data"], DTYPES[datatype]).ravel()
    assert found.tobytes() == np.array(VALUES[datatype], DTYPES[datatype]).tobytes(), output["data"]
    if datatype == "BOOL":
        assert all(isinstance(value, bool) for value in np.ravel(output["data"]).tolist()), output["data"]


def test_data_may_be_nested_or_flat(server):
    """Input data is row-major, flat or nested as the shape is, or partly."""
    flat = ONE.inputs["image"].ravel().tolist()
    nested = ONE.inputs["image"].tolist()
    partly = ONE.inputs["image"].reshape(2, 64).tolist()
    answers = []
    for data in (flat, nested, partly):
        image = {"name": "image", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": data}
        answers.append(array_of(rest.infer(server, "digits", {"inputs": [image]}).outputs()["probabilities"]))
    assert all(np.array_equal(answers[0], other) for other in answers)
    ONE.check({"probabilities": answers[0]}.get)


def test_whole_numbers_are_floats_too(server):
    """A number without a fraction is a valid FP32; one with a fraction is no INT64."""
    output = identity(server, "FP32", [3], [1, -2, 3]).outputs()["output_0"]
    assert np.ravel(output["data"]).tolist() == [1.0, -2.0, 3.0]
    bad(server, "INT64", [1], [1.5])


def test_half_precision_is_not_said_in_json(server):
    """FP16 and BF16 have no JSON form: it is refused in either direction, and the message says to use binary data."""
    for datatype in ("FP16", "BF16"):
        bad(server, datatype, [1], [1.0], "binary")
    body, headers = rest.with_tail({"inputs": [rest.binary_tensor("x", "FP16", [1, 4], bytes(8))]}, bytes(8))
    rest.refused(rest.infer(server, "half", body, headers), 400, "binary")


def test_what_is_no_number_in_json_is_never_written(server):
    """NaN and infinities have no JSON form: an answer with some is valid JSON all the same, or refused."""
    raw = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32).tobytes()
    body, headers = rest.with_tail({"inputs": [rest.binary_tensor("x", "FP32", [4], raw)]}, raw)
    answer = rest.infer(server, "identity", body, headers)
    # Strict about NaN.
    found = answer.json()
    if answer.status != 200:
        rest.refused(answer, 400)
    else:
        assert np.ravel(found["outputs"][0]["data"]).tolist()[3] == 1.0


NOT_THREE = [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [[1.0], [2.0, 3.0]], [[1.0, 2.0, 3.0], []], [], 1.0, "1.0", {}, None]


@pytest.mark.parametrize("data", NOT_THREE)
def test_data_has_the_elements_of_the_shape(server, data):
    """Too few or too many elements, lists that are ragged, and data that is no list are refused."""
    bad(server, "FP32", [3], data)


NOT_VALUES = [("FP32", "1.0"), ("FP32", True), ("FP32", None), ("FP32", {}), ("FP32", 1e300), ("INT64", 2**63), ("INT64", "7")]
NOT_VALUES += [("INT8", 128), ("INT16", -32769), ("UINT8", -1), ("UINT8", 256), ("BOOL", 2), ("BOOL", "true"), ("INT32", 0.5)]
NOT_VALUES += [("BYTES", "text"), ("UINT32", 1)]


@pytest.mark.parametrize("datatype,value", NOT_VALUES)
def test_values_are_of_the_datatype(server, datatype, value):
    """A value of another kind, or one that the datatype cannot hold, is refused, never cut; so are datatypes that TorchScript
    lacks."""
    bad(server, datatype, [1], [value])


@pytest.mark.parametrize("shape", [[-1], [2**40, 2**40], [0.5], ["3"], 3, None, [True]])
def test_shapes_that_cannot_be_are_refused(server, shape):
    """A shape is a list of whole numbers from 0 on."""
    bad(server, "FP32", shape, [1.0])


def test_an_empty_tensor(server):
    """A shape with a zero has data []."""
    output = identity(server, "FP32", [0, 3], []).outputs()["output_0"]
    assert (output["shape"], np.ravel(output["data"]).tolist()) == ([0, 3], [])


BODIES = [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"{} {}", b"[" * 100_000, b'{"inputs":' * 50_000]
BODIES += [b'{"inputs": 7}', b'{"inputs": [7]}', b'{"inputs": [{}]}', b'{"inputs": []}', b'{"id": 7, "inputs": []}']
BODIES += [b'{"inputs": [], "outputs": 7}', b'{"inputs": [], "parameters": []}']


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_a_body_that_is_no_request_is_400(server, body):
    """What is no JSON object with inputs is refused, however deep it is nested, and the server answers the next request."""
    rest.refused(rest.infer(server, "digits", body), 400)
    ONE.check({"probabilities": array_of(rest.infer(server, "digits", body_of(ONE)).outputs()["probabilities"])}.get)


@pytest.mark.parametrize("missing", ["name", "shape", "datatype", "data"])
def test_an_input_is_complete(server, missing):
    """name, shape, datatype and data of an input are needed, and the message names what is missing."""
    body = body_of(ONE)
    del body["inputs"][0][missing]
    rest.refused(rest.infer(server, "digits", body), 400, missing)


def test_what_nobody_knows_is_let_be(server):
    """Fields and parameters that the server does not know are no error (KServe's client sends model_name in the body)."""
    body = body_of(ONE, model_name="digits", colour={"grey": [1]}, parameters={"colour": "grey", "depth": 1.5, "on": True})
    body["inputs"][0]["parameters"] = {"colour": 7}
    body["outputs"] = [{"name": "probabilities", "parameters": {"colour": "grey"}}]
    ONE.check({"probabilities": array_of(rest.infer(server, "digits", body).outputs()["probabilities"])}.get)


CONTENT_TYPES = [None, "application/json", "application/octet-stream", "application/json; charset=utf-8"]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_json_of_any_content_type(server, content_type):
    """Clients name the content differently or not at all: without a binary header the body is JSON."""
    text = json.dumps(body_of(ONE)).encode()
    headers = {"Content-Type": content_type} if content_type else {}
    ONE.check({"probabilities": array_of(rest.infer(server, "digits", text, headers).outputs()["probabilities"])}.get)


def test_the_id_is_echoed(server):
    """The id of a request comes back as it was."""
    for id in ("42", 'a "b" \\ c', "é\u2028", "x" * 5000):
        assert rest.infer(server, "digits", body_of(ONE, id=id)).ok()["id"] == id


def test_without_an_id_there_is_none_in_the_answer(server):
    """An answer has the id of its request; where a request has none, its answer has no id either."""
    assert not rest.infer(server, "digits", body_of(ONE)).ok().get("id")


def test_the_requested_outputs_come_in_the_requested_order(server):
    """Only the outputs that a request lists come, in its order; none listed are all."""
    path = path_of(TEXT)
    asked = body_of(TEXT, outputs=[{"name": "total"}, {"name": "tags"}])
    assert [output["name"] for output in rest.post(server, path, asked).ok()["outputs"]] == ["total", "tags"]
    for asked in (body_of(TEXT), body_of(TEXT, outputs=[])):
        assert [output["name"] for output in rest.post(server, path, asked).ok()["outputs"]] == ["tags", "scores", "total"]


def test_wrong_names_and_shapes_are_refused(server):
    """What the model does not have, does not declare, or has once only is refused with 400 and named."""
    image = rest.tensor("image", "FP32", ONE.inputs["image"])
    rest.refused(rest.infer(server, "digits", {"inputs": [image], "outputs": [{"name": "logits"}]}), 400, "logits")
    rest.refused(rest.infer(server, "digits", {"inputs": [image, image]}), 400, "image")
    rest.refused(rest.infer(server, "digits", {"inputs": [{**image, "name": "picture"}]}), 400, "picture")
    rest.refused(rest.infer(server, "digits", {"inputs": [{**image, "datatype": "FP64"}]}), 400, "FP32")
    rest.refused(rest.infer(server, "digits", {"inputs": [{**image, "shape": [2, 64]}]}), 400)


@pytest.mark.parametrize("number", LANES)
def test_priority_is_a_lane(server, number):
    """Parameter priority as a JSON number: 1 is the highest lane, and what is above 4 is LOW."""
    asked = body_of(ONE, parameters={"priority": number})
    assert lane_of(server, lambda: rest.infer(server, "digits", asked).ok()) == LANES[number]


def test_x_priority_counts_where_the_parameter_is_not_set(server):
    """Header x-priority is a name or a number; the parameter comes before it, unless it is 0."""

    def lane(value, **fields):
        return lane_of(server, lambda: rest.infer(server, "digits", body_of(ONE, **fields), {"x-priority": value}).ok())

    assert (lane("HIGH"), lane("1"), lane("low")) == ("HIGH", "CRITICAL", "LOW")
    assert lane("1", parameters={"priority": 4}) == "LOW"
    assert lane("1", parameters={"priority": 0}) == "CRITICAL"
    rest.refused(rest.infer(server, "digits", body_of(ONE), {"x-priority": "urgent"}), 400, "x-priority")


WRONG_PARAMETERS = [("priority", -1), ("priority", 1.5), ("priority", "1"), ("priority", True)]
WRONG_PARAMETERS += [("timeout", -1), ("timeout", 0.5), ("timeout", "1s"), ("timeout", True), ("timeout", 2**64)]
# Numbers of JSON are int64 where they fit; this one would only be a uint64, which a timeout is not.
WRONG_PARAMETERS += [("timeout", 2**63)]
# Without an id there is no sequence that could begin or end.
WRONG_PARAMETERS += [("sequence_start", True), ("sequence_end", True)]
WRONG_PARAMETERS += [("sequence_id", True), ("sequence_start", 1), ("triton_", True)]


@pytest.mark.parametrize("key,value", WRONG_PARAMETERS)
def test_wrong_parameters_are_refused(server, key, value):
    """Parameters with a meaning have their kind and range, and triton_ is reserved."""
    rest.refused(rest.infer(server, "digits", body_of(ONE, parameters={key: value})), 400, key)


SEQUENCE = {"sequence_id": 7, "sequence_start": True, "sequence_end": True}


@pytest.mark.parametrize("parameters", [{"timeout": 60_000_000}, {"timeout": 0}, SEQUENCE, {"sequence_id": "seven"}])
def test_parameters_that_change_nothing(server, parameters):
    """A long timeout, or a sequence of a model without state."""
    found = rest.infer(server, "digits", body_of(ONE, parameters=parameters)).outputs()
    ONE.check({"probabilities": array_of(found["probabilities"])}.get)


@pytest.mark.parametrize("value", ["60000", "1"])
def test_x_timeout_ms_is_a_number(server, value):
    """Header x-timeout-ms is a whole number of milliseconds."""
    answer = rest.infer(server, "digits", body_of(ONE), {"x-timeout-ms": value})
    # A millisecond may be too short for a picture; whether it is, only the clock knows.
    assert answer.status in ({200} if value == "60000" else {200, 504}), answer.body


@pytest.mark.parametrize("value", ["-1", "1.5", "soon", "", "99999999999999999999999"])
def test_x_timeout_ms_that_is_none_is_refused(server, value):
    """Another x-timeout-ms is refused, not ignored: its sender counts on it."""
    rest.refused(rest.infer(server, "digits", body_of(ONE), {"x-timeout-ms": value}), 400, "x-timeout-ms")


@pytest.mark.parametrize("trace", ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "broken"])
def test_trace_contexts_are_accepted(server, trace):
    """W3C traceparent and tracestate headers are taken, and one that is broken is no error."""
    rest.infer(server, "digits", body_of(ONE), {"traceparent": trace, "tracestate": "vendor=1"}).ok()


def test_a_model_that_fails_says_so_in_one_line(server):
    """A failing forward pass is 500 with one short line, though the model's own message is 4 MB long."""
    answer = rest.infer(server, "throws", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [-1.0]}]})
    rest.refused(answer, 500, "refused:")
