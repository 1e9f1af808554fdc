"""The binary tensor extension over REST: bytes behind the JSON, in both directions."""

import itertools

import numpy as np
import pytest

import rest
from cases import DTYPES, ONE, TEXT, digits, wire_name

# Every way to spread a request's inputs and outputs over JSON and bytes.
MIXES = list(itertools.product(("json", "binary"), repeat=4))


def bytes_of(output):
    return np.frombuffer(output["raw"], DTYPES[output["datatype"]]).reshape(output["shape"])


def array_of(output):
    if "raw" in output:
        return bytes_of(output)
    return np.array(output["data"], DTYPES[output["datatype"]]).reshape(output["shape"])


def infer(server, model, head, *tails, length=None):
    return rest.infer(server, model, *rest.with_tail(head, *tails, length=length))


def image(case=ONE, **parameters):
    raw = case.inputs["image"].tobytes()
    return rest.binary_tensor("image", "FP32", case.inputs["image"].shape, raw, **parameters), raw


@pytest.mark.parametrize("tokens,weights,tags,total", MIXES, ids=lambda how: how)
def test_json_and_binary_may_be_mixed(server, tokens, weights, tags, total):
    """Each input and each output goes as JSON or as bytes, by itself; bytes follow the JSON in the order of the tensors."""
    inputs, tails = [], []
    for name, how in (("tokens", tokens), ("weights", weights)):
        array = TEXT.inputs[name]
        if how == "json":
            inputs.append(rest.tensor(name, wire_name(array), array))
        else:
            inputs.append(rest.binary_tensor(name, wire_name(array), array.shape, array.tobytes()))
            tails.append(array.tobytes())
    wanted = {"tags": tags, "total": total}
    outputs = [{"name": name, "parameters": {"binary_data": how == "binary"}} for name, how in wanted.items()]
    head = {"inputs": inputs, "outputs": outputs}
    body, headers = rest.with_tail(head, *tails)
    if not tails:
        headers = {"Content-Type": "application/json"}
    answer = rest.infer(server, "tagger", body, headers)
    found = answer.outputs()
    assert list(found) == ["tags", "total"]
    for name, how in wanted.items():
        assert ("raw" in found[name]) == (how == "binary"), f"{name} was asked for as {how}"
        assert np.array_equal(array_of(found[name]), TEXT.outputs[name]), name
    some = "binary" in (tags, total)
    assert (rest.HEADER_LENGTH.lower() in answer.headers) or not some, f"{rest.HEADER_LENGTH} is missing"
    kind = "application/octet-stream" if some else "application/json"
    assert answer.headers["content-type"].startswith(kind), answer.headers
    assert int(answer.headers.get("content-length", len(answer.body))) == len(answer.body)


def test_binary_data_output_is_for_all_outputs(server):
    """Request parameter binary_data_output: every output comes as bytes; binary_data of an output overrides it."""
    inputs = [rest.tensor(name, wire_name(array), array) for name, array in TEXT.inputs.items()]
    body = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    found = rest.infer(server, "tagger", body).outputs()
    assert all("raw" in output for output in found.values()) and list(found) == ["tags", "scores", "total"]
    TEXT.check(lambda name: bytes_of(found[name]))
    body["outputs"] = [{"name": "tags"}, {"name": "scores", "parameters": {"binary_data": False}}]
    found = rest.infer(server, "tagger", body).outputs()
    assert ("raw" in found["tags"], "raw" in found["scores"]) == (True, False)


def test_without_a_word_outputs_are_json(server):
    """Binary inputs do not make outputs binary."""
    head, raw = image()
    found = infer(server, "digits", {"inputs": [head]}, raw).outputs()["probabilities"]
    assert "data" in found
    ONE.check({"probabilities": array_of(found)}.get)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"])
def test_every_datatype_as_bytes(server, datatype):
    """Bytes are little-endian and row-major for every datatype, and come back bit by bit."""
    size = 2 if datatype == "BF16" else DTYPES[datatype].itemsize
    raw = b"\x01\x00\x01" if datatype == "BOOL" else bytes(range(1, 3 * size + 1))
    head = {"inputs": [rest.binary_tensor("x", datatype, [3], raw)], "parameters": {"binary_data_output": True}}
    found = infer(server, "identity", head, raw).outputs()["output_0"]
    assert (found["datatype"], found["shape"], found["raw"]) == (datatype, [3], raw)


def test_an_empty_tensor_has_no_bytes(server):
    """A tensor without elements has binary_data_size 0 and nothing in the tail."""
    head = {"inputs": [rest.binary_tensor("x", "FP32", [0, 3], b"")], "parameters": {"binary_data_output": True}}
    found = infer(server, "identity", head).outputs()["output_0"]
    assert (found["shape"], found["raw"]) == ([0, 3], b"")


# What binary_data_size says, and how long the tail is; the image has 512 bytes.
WRONG_SIZES = [(508, 508), (516, 516), (512, 511), (512, 513), (512, 0), (0, 0), (-1, 512), (2**63, 512), (2**64, 512)]
WRONG_SIZES += [(0.5, 512), ("512", 512), (True, 512)]


@pytest.mark.parametrize("size,tail", WRONG_SIZES)
def test_sizes_agree(server, size, tail):
    """binary_data_size is that of shape and datatype, and the tails are as long as they say: not a byte less or more."""
    head, _ = image()
    head["parameters"]["binary_data_size"] = size
    rest.refused(infer(server, "digits", {"inputs": [head]}, bytes(tail)), 400)


def test_data_beside_bytes_is_refused(server):
    """An input has data in the JSON or bytes behind it, not both."""
    head, raw = image()
    head["data"] = ONE.inputs["image"].ravel().tolist()
    rest.refused(infer(server, "digits", {"inputs": [head]}, raw), 400)


@pytest.mark.parametrize("length", ["10000", "-1", "1.5", "many", "", "99999999999999999999999999", "+7"])
def test_a_wrong_header_length_is_refused(server, length):
    """Inference-Header-Content-Length beyond the body, or no number, is refused and named."""
    head, raw = image()
    rest.refused(infer(server, "digits", {"inputs": [head]}, raw, length=length), 400, rest.HEADER_LENGTH)


@pytest.mark.parametrize("by", [-1, 1, -30])
def test_a_header_length_that_cuts_the_json_is_refused(server, by):
    """A header length that ends within the JSON, or behind it, leaves no JSON to read."""
    head, raw = image()
    _, headers = rest.with_tail({"inputs": [head]}, raw)
    right = int(headers[rest.HEADER_LENGTH])
    rest.refused(infer(server, "digits", {"inputs": [head]}, raw, length=right + by), 400)


def test_bytes_without_the_header_are_refused(server):
    """Without the header the whole body is JSON, and bytes behind it are an error."""
    head, raw = image()
    whole, _ = rest.with_tail({"inputs": [head]}, raw)
    rest.refused(rest.infer(server, "digits", whole, {"Content-Type": "application/octet-stream"}), 400)


def test_the_header_on_a_body_of_json_alone(server):
    """A header length that is the whole body's is right where nothing is behind the JSON."""
    head = {"inputs": [rest.tensor("image", "FP32", ONE.inputs["image"])]}
    ONE.check({"probabilities": array_of(infer(server, "digits", head).outputs()["probabilities"])}.get)


def raw_request(server, model, body, **headers):
    return rest.infer(server, model, body, {rest.HEADER_LENGTH: "0", "Content-Type": "application/octet-stream", **headers})


def test_a_raw_binary_request(server):
    """Header length 0: the body is the one input of a batch of 1, and every output comes back as bytes."""
    case = digits("", 17, 1)
    answer = raw_request(server, "digits", case.inputs["image"].tobytes())
    found = answer.outputs()["probabilities"]
    assert rest.HEADER_LENGTH.lower() in answer.headers
    case.check({"probabilities": bytes_of(found)}.get)


def test_a_raw_binary_request_has_at_most_one_variable_dimension(server):
    """What the batch and the size of the body do not tell cannot be guessed: `echo` takes [-1, -1], batch 1 leaves one
    dimension."""
    x = np.arange(5, dtype=np.float32)
    found = raw_request(server, "echo", x.tobytes()).outputs()["y"]
    assert (found["shape"], bytes_of(found).tolist()) == ([1, 5], [x.tolist()])


NOT_RAW = [("digits", 255), ("digits", 257), ("digits", 0), ("digits", 512), ("tagger", 64), ("identity", 4), ("echo", 5)]


@pytest.mark.parametrize("model,size", NOT_RAW)
def test_what_is_no_raw_binary_request(server, model, size):
    """A body of another size, a model of several inputs, and one that declares no shape are refused."""
    rest.refused(raw_request(server, model, bytes(size)), 400)


def test_classification_as_bytes(server):
    """BYTES in the tail: for each element four bytes of length, little-endian, then the text."""
    head, raw = image()
    outputs = [{"name": "probabilities", "parameters": {"classification": 3, "binary_data": True}}]
    found = infer(server, "digits", {"inputs": [head], "outputs": outputs}, raw).outputs()["probabilities"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [2, 3])
    tail, texts = found["raw"], []
    while tail:
        length = int.from_bytes(tail[:4], "little")
        texts.append(tail[4 : 4 + length].decode())
        assert len(texts[-1]) == length, "the tail ends within a text"
        tail = tail[4 + length :]
    assert len(texts) == 6
    first = int(np.argmax(ONE.outputs["probabilities"][0]))
    value, index, label = texts[0].split(":")
    assert (int(index), label) == (first, str(first)), texts
    assert abs(float(value) - ONE.outputs["probabilities"][0][first]) < 1e-3


WRONG_KINDS = [("binary_data", 1), ("binary_data", "true"), ("classification", "3"), ("classification", -1)]
WRONG_KINDS += [("classification", 1.5)]


@pytest.mark.parametrize("key,value", WRONG_KINDS)
def test_output_parameters_have_their_kinds(server, key, value):
    """binary_data is a bool, classification a number from 1 on."""
    head, raw = image()
    outputs = [{"name": "probabilities", "parameters": {key: value}}]
    rest.refused(infer(server, "digits", {"inputs": [head], "outputs": outputs}, raw), 400, key)
