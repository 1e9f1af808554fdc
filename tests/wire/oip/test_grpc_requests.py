"""What a request over gRPC says beside its tensors: model, version, id, parameters, compression, trace."""

import grpc
import pytest

from cases import DIGITS, LABELS, ONE, TAGGER, TEXT
from lanes import LANES, lane_of
from rpcs import Calls, Code, channel, check, of_case, put, raw_of, refused, request
from server import MAX_MESSAGE_BYTES, PATIENCE

INVALID = Code.INVALID_ARGUMENT
KINDS = {"bool": True, "int64": 7, "string": "text", "double": 0.5, "uint64": 2**64 - 1}


@pytest.fixture(scope="module")
def calls(server):
    return Calls(server)


@pytest.mark.parametrize("case", DIGITS + LABELS + TAGGER, ids=lambda case: case.id)
def test_golden_outputs(calls, case):
    """Every sample model answers what PyTorch answered."""
    check(case, calls.ModelInfer(of_case(case)))


def test_the_id_is_echoed(calls):
    """The id of a request comes back as it was, whatever it is made of."""
    for id in ("42", "a b\tc", "é" * 200, "x" * 5000):
        assert calls.ModelInfer(of_case(ONE, id=id)).id == id, "the id changed"


def test_without_an_id_there_is_none_in_the_answer(calls):
    """An answer has the id of its request; where a request has none, so has its answer."""
    assert calls.ModelInfer(of_case(ONE)).id == ""


def test_the_model_and_the_version_used_are_in_the_answer(calls):
    """model_version in the answer is the number of the version that answered, also where none or a label was asked for."""
    for version, used in (("", "2"), ("1", "1"), ("2", "2"), ("stable", "2"), ("first", "1")):
        asked = of_case(ONE)
        asked.model_version = version
        response = calls.ModelInfer(asked)
        assert (response.model_name, response.model_version) == ("digits", used), f"version '{version}'"


@pytest.mark.parametrize("version", ["3", "canary", "9223372036854775807"])
def test_a_version_that_is_not_there_is_not_found(calls, version):
    """An unknown version or label is NOT_FOUND."""
    asked = of_case(ONE)
    asked.model_version = version
    refused(lambda: calls.ModelInfer(asked), Code.NOT_FOUND)


@pytest.mark.parametrize("version", ["-1", "01", "1.0", " 1", "Stable", "1/2", "..", "x" * 100])
def test_a_version_is_a_number_or_a_label(calls, version):
    """What is neither a number nor a label is refused."""
    asked = of_case(ONE)
    asked.model_version = version
    refused(lambda: calls.ModelInfer(asked), INVALID)


@pytest.mark.parametrize("model", ["nope", "", "../digits", "digits/1", pytest.param("x" * 10_000, id="long")])
def test_an_unknown_model_is_not_found(calls, model):
    """An unknown model is NOT_FOUND, and the message stays short however long its name is."""
    refused(lambda: calls.ModelInfer(request(model, ("x", "FP32", [1]), raw=[bytes(4)])), Code.NOT_FOUND)


@pytest.mark.parametrize("kind", ["int64", "uint64"])
@pytest.mark.parametrize("number", LANES)
def test_priority_is_a_lane(server, calls, kind, number):
    """Parameter priority, int64 or uint64: 1 is the highest lane, and what is above 4 is LOW."""
    asked = of_case(ONE)
    put(asked.parameters, "priority", **{kind: number})
    assert lane_of(server, lambda: calls.ModelInfer(asked)) == LANES[number]


def test_priority_0_is_the_models_default(server, calls):
    """Priority 0, or none, is the default lane of the model."""
    for kind in ("int64", "uint64"):
        for model, lane in (("identity", "NORMAL"), ("low", "LOW")):
            asked = request(model, ("x", "FP32", [1]), raw=[bytes(4)])
            put(asked.parameters, "priority", **{kind: 0})
            assert lane_of(server, lambda: calls.ModelInfer(asked), model) == lane
    bare = request("low", ("x", "FP32", [1]), raw=[bytes(4)])
    assert lane_of(server, lambda: calls.ModelInfer(bare), "low") == "LOW"


def test_x_priority_counts_where_the_parameter_is_not_set(server, calls):
    """Metadata x-priority is a name or a number; the parameter comes before it."""
    for value in ("HIGH", "high", "2"):
        send = lambda: calls.ModelInfer(of_case(ONE), metadata=[("x-priority", value)])
        assert lane_of(server, send) == "HIGH", value
    asked = of_case(ONE)
    put(asked.parameters, "priority", int64=4)
    assert lane_of(server, lambda: calls.ModelInfer(asked, metadata=[("x-priority", "1")])) == "LOW"
    refused(lambda: calls.ModelInfer(of_case(ONE), metadata=[("x-priority", "urgent")]), INVALID, "x-priority")


@pytest.mark.parametrize("kind,value", [("int64", -1), ("string", "1"), ("bool", True), ("double", 1.0)])
def test_a_priority_that_is_none_is_refused(calls, kind, value):
    """A negative priority, or one of another kind, is refused."""
    asked = of_case(ONE)
    put(asked.parameters, "priority", **{kind: value})
    refused(lambda: calls.ModelInfer(asked), INVALID, "priority")


NOT_TIMEOUTS = [("uint64", 1_000_000), ("string", "1s"), ("double", 1e6), ("bool", True), ("int64", -1)]


@pytest.mark.parametrize("kind,value", NOT_TIMEOUTS)
def test_timeout_is_int64_microseconds_only(calls, kind, value):
    """Parameter timeout of another kind than int64, or negative, is refused."""
    asked = of_case(ONE)
    put(asked.parameters, "timeout", **{kind: value})
    refused(lambda: calls.ModelInfer(asked), INVALID, "timeout")


@pytest.mark.parametrize("timeout", [0, 60_000_000, 2**63 - 1])
def test_a_timeout_that_is_far_does_not_matter(calls, timeout):
    """A long timeout changes nothing, the longest there is overflows nothing, and 0 is none."""
    asked = of_case(ONE)
    put(asked.parameters, "timeout", int64=timeout)
    check(ONE, calls.ModelInfer(asked))


@pytest.mark.parametrize("id_kind", [{"int64": 7}, {"string": "seven"}, {"int64": 0}, {"string": ""}])
def test_sequences_are_accepted(calls, id_kind):
    """sequence_id is an int64 or a string, sequence_start and sequence_end are bools; a model without state just answers."""
    asked = of_case(ONE)
    put(asked.parameters, "sequence_id", **id_kind)
    if id_kind not in ({"int64": 0}, {"string": ""}):
        put(asked.parameters, "sequence_start", bool=True)
        put(asked.parameters, "sequence_end", bool=True)
    check(ONE, calls.ModelInfer(asked))


@pytest.mark.parametrize(
    "key,kind",
    [
        ("sequence_id", {"bool": True}),
        ("sequence_id", {"double": 1.5}),
        ("sequence_start", {"int64": 1}),
        ("sequence_end", {"string": "true"}),
    ],
)
def test_sequence_parameters_have_their_kinds(calls, key, kind):
    """A sequence parameter of another kind is refused."""
    asked = of_case(ONE)
    put(asked.parameters, key, **kind)
    refused(lambda: calls.ModelInfer(asked), INVALID, key)


@pytest.mark.parametrize("key", ["sequence_start", "sequence_end"])
@pytest.mark.parametrize("id_kind", [None, {"int64": 0}, {"uint64": 0}, {"string": ""}])
def test_the_ends_of_a_sequence_need_its_id(calls, key, id_kind):
    """sequence_start and sequence_end without a sequence_id, or with 0 or an empty one, are refused."""
    asked = of_case(ONE)
    if id_kind:
        put(asked.parameters, "sequence_id", **id_kind)
    put(asked.parameters, key, bool=True)
    refused(lambda: calls.ModelInfer(asked), INVALID, key)
    put(asked.parameters, key, bool=False)
    check(ONE, calls.ModelInfer(asked))


@pytest.mark.parametrize("key", ["triton_final_response", "triton_", "triton_something"])
def test_reserved_parameters_are_refused(calls, key):
    """Parameters that begin with triton_ are the protocol's own: a request may not make some up."""
    asked = of_case(ONE)
    put(asked.parameters, key, bool=True)
    refused(lambda: calls.ModelInfer(asked), INVALID, "triton_")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_parameters_are_accepted(calls, kind):
    """A parameter that nobody knows is let be, of whichever kind."""
    asked = of_case(ONE)
    put(asked.parameters, "colour", **{kind: KINDS[kind]})
    check(ONE, calls.ModelInfer(asked))


def test_what_triton_keeps_for_itself_is_let_be(calls):
    """Triton's documents reserve the parameter `headers`, which nothing reads; metadata triton-grpc-protocol-KEY is the key to
    calls that a Triton may restrict, and here none are."""
    asked = of_case(ONE)
    put(asked.parameters, "headers", string="colour: grey")
    check(ONE, calls.ModelInfer(asked, metadata=[("triton-grpc-protocol-infer-key", "infer-value")]))


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_may_be_compressed(calls, compression):
    """gRPC's own compression, of each message."""
    check(TEXT, calls.ModelInfer(of_case(TEXT), compression=compression))


def test_a_message_that_is_too_long_is_refused(calls):
    """A message over the limit is RESOURCE_EXHAUSTED, whether it comes as it is or inflates to it."""
    count = MAX_MESSAGE_BYTES // 4 + 1
    long = request("identity", ("x", "FP32", [count]), raw=[bytes(4 * count)])
    refused(lambda: calls.ModelInfer(long), Code.RESOURCE_EXHAUSTED)
    refused(lambda: calls.ModelInfer(long, compression=grpc.Compression.Gzip), Code.RESOURCE_EXHAUSTED)
    check(ONE, calls.ModelInfer(of_case(ONE)))


def test_answers_over_4_mib_arrive(server, calls):
    """A client that reads more than gRPC's default of 4 MiB gets a longer answer; one that does not is told so by its own
    library."""
    count = 5 * 1024 * 1024 // 4
    long = request("identity", ("x", "FP32", [count]), raw=[bytes(4 * count)])
    ((_, _, raw),) = raw_of(calls.ModelInfer(long)).values()
    assert len(raw) == 4 * count
    with grpc.insecure_channel(server.grpc) as plain:
        send = plain.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda message: message.SerializeToString()
        )
        refused(lambda: send(long, timeout=PATIENCE), Code.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("trace", ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-zz-zz-00", ""])
def test_trace_contexts_are_accepted(calls, trace):
    """W3C traceparent and tracestate in metadata are taken, and one that is broken is no error."""
    metadata = [("traceparent", trace), ("tracestate", "vendor=1")]
    check(ONE, calls.ModelInfer(of_case(ONE), metadata=metadata))


def test_a_model_that_fails_says_so_in_one_line(calls):
    """A failing forward pass is INTERNAL with one short line, though the model's own message is 4 MB long."""
    bad = request("throws", ("x", "FP32", [1]), raw=[b"\x00\x00\x80\xbf"])
    refused(lambda: calls.ModelInfer(bad), Code.INTERNAL, "refused:")


def test_a_message_that_is_no_message_is_refused(server):
    """Bytes that are no protobuf fail the call, and the server answers the next one."""
    send = channel(server).unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        send(b"\xff\xff\xff", timeout=PATIENCE)
    assert caught.value.code() in {INVALID, Code.INTERNAL}, caught.value
    check(ONE, Calls(server).ModelInfer(of_case(ONE)))
