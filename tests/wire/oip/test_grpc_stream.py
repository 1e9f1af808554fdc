"""ModelStreamInfer: many requests over one call, as Triton has it."""

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from cases import DIGITS, ONE, TEXT
from lanes import lane_of
from rest import one_line
from rpcs import Calls, Code, channel, check, of_case, put, request
from server import PATIENCE


@pytest.fixture(scope="module")
def calls(server):
    return Calls(server)


def unknown(id):
    return request("nope", ("x", "FP32", [1]), raw=[bytes(4)], id=id)


def stream(calls, *requests, **how):
    """The answers to these requests. One that is an error says no more than which request it is of."""
    answers = []
    for answer in calls.ModelStreamInfer(iter(requests), timeout=PATIENCE, **how):
        assert bool(answer.error_message) != bool(answer.infer_response.outputs), f"both or neither: {answer}"
        assert answer.infer_response.id or not any(asked.id for asked in requests), f"of which request? {answer}"
        answers.append(answer)
    return answers


def test_each_request_is_answered_and_the_stream_ends(calls):
    """Answers come as they are ready, each with its request's id; when the caller has said all, the stream ends with OK."""
    cases = {str(at): case for at, case in enumerate([*DIGITS, TEXT])}
    answers = stream(calls, *(of_case(case, id=id) for id, case in cases.items()))
    assert sorted(answer.infer_response.id for answer in answers) == sorted(cases)
    for answer in answers:
        check(cases[answer.infer_response.id], answer.infer_response)


def test_errors_are_in_band(calls):
    """A request that fails is answered with error_message on the stream; its status stays OK, and later ones are answered."""
    answers = stream(calls, of_case(ONE, id="a"), unknown("b"), of_case(ONE, id="c"))
    said = [answer.error_message for answer in answers if answer.error_message]
    assert len(answers) == 3 and len(said) == 1, answers
    one_line(said[0])
    assert "nope" in said[0]
    assert {answer.infer_response.id for answer in answers if not answer.error_message} == {"a", "c"}


def test_triton_grpc_error_makes_errors_real(calls):
    """With metadata triton_grpc_error: true the first error ends the stream with its real status."""
    sent = iter([of_case(ONE, id="a"), unknown("b")])
    with pytest.raises(grpc.RpcError) as caught:
        for answer in calls.ModelStreamInfer(sent, timeout=PATIENCE, metadata=[("triton_grpc_error", "true")]):
            assert not answer.error_message, "an error in band, though real ones were asked for"
            assert answer.infer_response.id == "a"
    assert caught.value.code() == Code.NOT_FOUND, caught.value
    one_line(caught.value.details())


def test_triton_grpc_error_false_is_the_default(calls):
    """Metadata triton_grpc_error: false leaves errors in band."""
    (answer,) = stream(calls, unknown("b"), metadata=[("triton_grpc_error", "false")])
    assert answer.error_message


def test_a_stream_without_requests_ends_well(calls):
    """Nothing asked, nothing answered."""
    assert stream(calls) == []


def test_the_final_response_is_marked(calls):
    """triton_enable_empty_final_response is taken on streams, and an answer that is a request's last is marked as such."""
    asked = of_case(ONE, id="a")
    put(asked.parameters, "triton_enable_empty_final_response", bool=True)
    answers = stream(calls, asked)
    assert answers and not any(answer.error_message for answer in answers), answers
    marks = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers]
    assert marks == [False] * (len(marks) - 1) + [True], f"only the last is final: {marks}"
    check(ONE, answers[0].infer_response)


def test_the_final_response_is_marked_unasked(calls):
    """Triton's clients look for triton_final_response in each answer of a stream, failed ones too."""
    for answer in stream(calls, of_case(ONE, id="a"), unknown("b")):
        assert answer.infer_response.parameters["triton_final_response"].bool_param, answer


def test_reserved_parameters_are_refused_on_streams_too(calls):
    """Any other parameter that begins with triton_ is an error in band."""
    asked = of_case(ONE, id="a")
    put(asked.parameters, "triton_other", bool=True)
    (answer,) = stream(calls, asked)
    assert "triton_" in answer.error_message


@pytest.mark.parametrize("kind,value", [("string", "1"), ("int64", -1)])
def test_bad_parameters_are_errors_in_band(calls, kind, value):
    """A priority that is none fails its own request only."""
    asked = of_case(ONE, id="a")
    put(asked.parameters, "priority", **{kind: value})
    answers = stream(calls, asked, of_case(ONE, id="b"))
    assert sorted(bool(answer.error_message) for answer in answers) == [False, True]


def test_priorities_count_on_streams(server, calls):
    """Each request of a stream goes by its own priority."""
    asked = of_case(ONE)
    put(asked.parameters, "priority", uint64=1)
    assert lane_of(server, lambda: stream(calls, asked)) == "CRITICAL"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_streams_may_be_compressed(calls, compression):
    """gRPC's own compression, of each message of the stream."""
    (answer,) = stream(calls, of_case(TEXT), compression=compression)
    check(TEXT, answer.infer_response)


def test_a_caller_may_leave(calls):
    """A stream that is cancelled half-way leaves the server as it was."""
    call = calls.ModelStreamInfer(iter([of_case(ONE, id="again")] * 1000), timeout=PATIENCE)
    check(ONE, next(call).infer_response)
    call.cancel()
    check(ONE, calls.ModelInfer(of_case(ONE)))


def test_the_streams_answers_are_tritons(server, messages):
    """An answer on the stream is ModelStreamInferResponse (error_message = 1, infer_response = 2), not the bare response."""
    send = channel(server).stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    (answer,) = list(send(iter([of_case(ONE, id="a").SerializeToString()]), timeout=PATIENCE))
    parsed = pb.ModelStreamInferResponse.FromString(answer)
    assert parsed.infer_response.id == "a"
    Own = messages("proto", "inference/grpc_service.proto")("inference.ModelStreamInferResponse")
    assert Own.FromString(answer).infer_response.id == "a", "torchlane's own definition reads it otherwise than Triton's"
