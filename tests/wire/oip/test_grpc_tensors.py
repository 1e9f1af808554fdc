"""How tensors travel over gRPC: raw bytes or typed lists, and what must agree."""

import struct

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from cases import DTYPES, ONE, TEXT
from rpcs import Calls, Code, arrays, check, of_case, put, raw_of, refused, request

INVALID = Code.INVALID_ARGUMENT
# Six elements of each datatype with the ends of its range.
VALUES = {
    "BOOL": [True, False, True, True, False, True],
    "UINT8": [0, 1, 2, 127, 128, 255],
    "INT8": [-128, -1, 0, 1, 2, 127],
    "INT16": [-32768, -1, 0, 1, 256, 32767],
    "INT32": [-(2**31), -1, 0, 1, 65536, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1],
    "FP16": [0.0, -0.5, 1.0, 65504.0, -65504.0, 2.0**-24],
    "FP32": [0.0, -0.5, 1.5, 3.4028234e38, -1e-38, 1.1754944e-38],
    "FP64": [0.0, -0.5, 1.5, 1.7976931348623157e308, -5e-324, 0.1],
}
LISTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def contents(datatype, values):
    return pb.InferTensorContents(**{LISTS[datatype]: values})


@pytest.fixture(scope="module")
def calls(server):
    return Calls(server)


def echoed(calls, datatype, shape, *contents, raw=()):
    """What the model that answers with its input returns for a tensor."""
    response = calls.ModelInfer(request("identity", ("x", datatype, shape, *contents), raw=raw))
    ((name, (found, found_shape, bits)),) = raw_of(response).items()
    assert (found, found_shape) == (datatype, list(shape)), f"{name} is {found} {found_shape}"
    return bits


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_contents_are_little_endian_and_come_back_bit_by_bit(calls, datatype):
    """Raw tensors are flat, row-major, little-endian, without gaps, for every datatype."""
    raw = np.array(VALUES[datatype], DTYPES[datatype]).tobytes()
    assert echoed(calls, datatype, [2, 3], raw=[raw]) == raw, f"{datatype} changed on its way"


def test_bf16_travels_as_raw_bytes(calls):
    """BF16 is two raw bytes an element: the upper half of an FP32."""
    raw = b"".join(struct.pack("<f", value)[2:] for value in (0.0, 1.0, -2.5, 3.0e38))
    assert echoed(calls, "BF16", [4], raw=[raw]) == raw


def test_bool_is_a_byte_of_0_or_1(calls):
    """BOOL is one byte an element in raw contents, and what the model makes of any input is 0 or 1."""
    x = np.array([0.0, 2.0, -1.0], np.float32)
    response = calls.ModelInfer(request("dtype_out", ("x", "FP32", [3]), raw=[x.tobytes()]))
    datatype, shape, raw = raw_of(response)["output_0"]
    assert (datatype, shape, raw) == ("BOOL", [3], b"\x00\x01\x01")


def test_a_bool_of_another_byte_is_true(calls):
    """A raw BOOL above 1 is true, as in C: no model sees a third truth."""
    answer = calls.ModelInfer(request("identity", ("x", "BOOL", [3]), raw=[b"\x00\x02\xff"]))
    ((_, _, raw),) = raw_of(answer).values()
    assert raw == b"\x00\x01\x01"


def test_a_model_answers_in_every_datatype_at_once(calls):
    """One raw entry for each output, in the order of the outputs, whatever their datatypes."""
    x = np.array([0.0, 1.0, 2.0], np.float32)
    response = calls.ModelInfer(request("dtype_out", ("x", "FP32", [3]), raw=[x.tobytes()]))
    kinds = [output.datatype for output in response.outputs]
    assert kinds == ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"]
    sizes = [len(raw) for raw in response.raw_output_contents]
    assert sizes == [3 * size for size in (1, 1, 1, 2, 4, 8, 2, 2, 4, 8)], sizes
    assert response.raw_output_contents[7] == bytes.fromhex("0000803f0040"), "BF16 of 0, 1, 2"
    raw_of(response)


@pytest.mark.parametrize("datatype", LISTS)
def test_typed_contents_say_the_same_as_raw(calls, datatype):
    """INT8, INT16 and INT32 travel in int_contents, UINT8 in uint_contents, the others in the list of their name; the answer
    is raw."""
    values = VALUES[datatype]
    found = echoed(calls, datatype, [2, 3], contents(datatype, values))
    assert found == np.array(values, DTYPES[datatype]).tobytes(), f"{datatype} from {LISTS[datatype]}"


@pytest.mark.parametrize("datatype,value", [("INT8", 128), ("INT8", -129), ("INT16", 32768), ("UINT8", 256)])
def test_a_typed_value_that_does_not_fit_is_refused(calls, datatype, value):
    """A value in a typed list that its datatype cannot hold is refused, never cut."""
    bad = request("identity", ("x", datatype, [1], contents(datatype, [value])))
    refused(lambda: calls.ModelInfer(bad), INVALID, str(value))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_raw_only(calls, datatype):
    """FP16 and BF16 have no typed list: any is refused."""
    bad = request("identity", ("x", datatype, [1], pb.InferTensorContents(fp32_contents=[1.0])))
    refused(lambda: calls.ModelInfer(bad), INVALID, datatype)


def test_the_list_of_another_datatype_is_refused(calls):
    """Typed contents stand in the list of the tensor's datatype, and in no other."""
    bad = request("identity", ("x", "FP32", [1], pb.InferTensorContents(fp64_contents=[1.0])))
    refused(lambda: calls.ModelInfer(bad), INVALID)
    both = pb.InferTensorContents(fp32_contents=[1.0], int_contents=[1])
    refused(lambda: calls.ModelInfer(request("identity", ("x", "FP32", [1], both))), INVALID)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_typed_contents_have_as_many_elements_as_the_shape(calls, count):
    """A typed list whose length is not that of the shape is refused."""
    bad = request("identity", ("x", "FP32", [2, 3], contents("FP32", [0.5] * count)))
    refused(lambda: calls.ModelInfer(bad), INVALID)


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_raw_contents_have_the_size_of_the_shape(calls, size):
    """A raw entry whose size is not that of shape and datatype is refused."""
    bad = request("identity", ("x", "FP32", [2, 3]), raw=[bytes(size)])
    refused(lambda: calls.ModelInfer(bad), INVALID)


def test_contents_beside_raw_contents_are_refused(calls):
    """Where raw contents are used, no input may have typed contents: not the same one, and not another one either."""
    one = contents("FP32", [1.0])
    same = request("identity", ("x", "FP32", [1], one), raw=[bytes(4)])
    refused(lambda: calls.ModelInfer(same), INVALID, "raw_input_contents")
    other = request("add_two", ("a", "FP32", [1]), ("b", "FP32", [1], one), raw=[bytes(4)])
    refused(lambda: calls.ModelInfer(other), INVALID, "raw_input_contents")


def test_an_input_without_data_is_refused(calls):
    """An input that has neither typed contents, raw contents nor shared memory is refused, and named."""
    refused(lambda: calls.ModelInfer(request("identity", ("x", "FP32", [1]))), INVALID, "'x'")
    a, b = ("a", "FP32", [1]), ("b", "FP32", [1])
    refused(lambda: calls.ModelInfer(request("add_two", a, b, raw=[bytes(4)])), INVALID)


def test_raw_contents_without_an_input_are_refused(calls):
    """There are no more raw entries than inputs."""
    bad = request("identity", ("x", "FP32", [1]), raw=[bytes(4), bytes(4)])
    refused(lambda: calls.ModelInfer(bad), INVALID)


def test_raw_entries_belong_to_inputs_by_their_order(calls):
    """The first raw entry is the first input's, whichever order the model has."""
    tensors = [(name, {"tokens": "INT64", "weights": "FP32"}[name], TEXT.inputs[name].shape) for name in TEXT.inputs]
    raw = [array.tobytes() for array in TEXT.inputs.values()]
    check(TEXT, calls.ModelInfer(request("tagger", *tensors, raw=raw)))
    check(TEXT, calls.ModelInfer(request("tagger", *reversed(tensors), raw=raw[::-1])))
    refused(lambda: calls.ModelInfer(request("tagger", *tensors, raw=raw[::-1])), INVALID)


def test_a_tensor_without_elements_is_valid(calls):
    """A shape with a zero has no bytes: its raw entry, or its typed list, is empty, and so is the answer's raw entry."""
    assert echoed(calls, "FP32", [0, 3], raw=[b""]) == b""
    assert echoed(calls, "FP32", [0, 3], contents("FP32", [])) == b""


@pytest.mark.parametrize("shape", [[-1], [2, -3], [2**40, 2**40], [2**62], [1] * 2000])
def test_shapes_that_cannot_be_are_refused(calls, shape):
    """A negative or absurd dimension is refused before anything of that size is reserved."""
    refused(lambda: calls.ModelInfer(request("identity", ("x", "FP32", shape), raw=[bytes(4)])), INVALID)


@pytest.mark.parametrize("datatype", ["BYTES", "UINT16", "UINT32", "UINT64"])
def test_datatypes_that_torchscript_lacks_are_refused_by_name(calls, datatype):
    """The protocol's datatypes that no TorchScript model takes are refused, and the message names them."""
    typed = {"BYTES": {"bytes_contents": [b"text"]}, "UINT64": {"uint64_contents": [1]}}
    given = pb.InferTensorContents(**typed.get(datatype, {"uint_contents": [1]}))
    refused(lambda: calls.ModelInfer(request("identity", ("x", datatype, [1], given))), INVALID, datatype)
    raw = b"\x04\x00\x00\x00text" if datatype == "BYTES" else bytes({"UINT16": 2, "UINT32": 4, "UINT64": 8}[datatype])
    refused(lambda: calls.ModelInfer(request("identity", ("x", datatype, [1]), raw=[raw])), INVALID, datatype)


def test_names_of_datatypes_are_in_capitals(calls):
    """A datatype that the protocol does not have is refused, also one in small letters or of a model's configuration."""
    for datatype in ("fp32", "TYPE_FP32", "FLOAT", ""):
        refused(lambda: calls.ModelInfer(request("identity", ("x", datatype, [1]), raw=[bytes(4)])), INVALID)


def test_the_requested_outputs_come_in_the_requested_order(calls):
    """Only the outputs that a request lists come, in its order."""
    asked = of_case(TEXT)
    for name in ("total", "tags"):
        asked.outputs.add(name=name)
    response = calls.ModelInfer(asked)
    assert [output.name for output in response.outputs] == ["total", "tags"]
    assert np.array_equal(arrays(response)["tags"], TEXT.outputs["tags"])


def test_no_outputs_listed_means_all(calls):
    """A request that lists no outputs gets every output, in the model's order."""
    response = calls.ModelInfer(of_case(TEXT))
    assert [output.name for output in response.outputs] == ["tags", "scores", "total"]
    check(TEXT, response)


def test_wrong_names_are_refused(calls):
    """Outputs and inputs that the model does not have, and those that are named twice, are refused by name."""
    unknown = of_case(ONE)
    unknown.outputs.add(name="logits")
    refused(lambda: calls.ModelInfer(unknown), INVALID, "logits")
    twice = of_case(ONE)
    twice.outputs.add(name="probabilities")
    twice.outputs.add(name="probabilities")
    refused(lambda: calls.ModelInfer(twice), INVALID, "probabilities")
    a = ("a", "FP32", [1])
    refused(lambda: calls.ModelInfer(request("add_two", a, a, raw=[bytes(4)] * 2)), INVALID, "'a'")
    refused(lambda: calls.ModelInfer(request("add_two", a, ("c", "FP32", [1]), raw=[bytes(4)] * 2)), INVALID)
    refused(lambda: calls.ModelInfer(request("add_two", a, raw=[bytes(4)])), INVALID, "'b'")


def test_the_declared_signature_holds(calls):
    """A datatype or shape other than the model declares is refused, and the message says what it takes."""
    image = ONE.inputs["image"]
    wide = request("digits", ("image", "FP64", image.shape), raw=[image.astype(np.float64).tobytes()])
    refused(lambda: calls.ModelInfer(wide), INVALID, "FP32")
    flat = request("digits", ("image", "FP32", [2, 64]), raw=[image.tobytes()])
    refused(lambda: calls.ModelInfer(flat), INVALID, "8")
    many = request("digits", ("image", "FP32", [17, 1, 8, 8]), raw=[bytes(17 * 256)])
    refused(lambda: calls.ModelInfer(many), INVALID, "16")


def test_input_parameters_that_mean_nothing_are_let_be(calls):
    """A parameter of an input or output that the server does not know is no error (KServe's client sends binary_data_size)."""
    asked = of_case(ONE)
    put(asked.inputs[0].parameters, "binary_data_size", int64=len(asked.raw_input_contents[0]))
    put(asked.inputs[0].parameters, "colour", string="grey")
    asked.outputs.add(name="probabilities")
    put(asked.outputs[0].parameters, "binary_data", bool=True)
    check(ONE, calls.ModelInfer(asked))
