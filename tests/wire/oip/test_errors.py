"""Which status an error has: the same failure by its gRPC code and by its HTTP status."""

import pytest
from tritonclient.grpc import service_pb2 as pb

import repositories
import rest
from rpcs import Calls, Code, refused, request
from server import MAX_MESSAGE_BYTES

INFER = "/v2/models/{}/infer"


@pytest.fixture(scope="module")
def faulty(start):
    """A model that answers, one whose passes fail, and one that does not load."""
    fill = lambda folder: repositories.fake(folder, good="", failing='fail = "no"\nfail_always = true', broken='load_error = "no"')
    return start("faulty", fill, "backend=fake")


def infer(model, name="x"):
    """The same request by either door."""
    made = request(model, (name, "FP32", [1]), raw=[bytes(4)])
    body = {"inputs": [{"name": name, "datatype": "FP32", "shape": [1], "data": [0.0]}]}
    return lambda calls: calls.ModelInfer(made), ("POST", INFER.format(model), body)


def too_long():
    made = request("good", ("x", "FP32", [MAX_MESSAGE_BYTES // 4 + 1]), raw=[bytes(MAX_MESSAGE_BYTES + 4)])
    return lambda calls: calls.ModelInfer(made), ("POST", INFER.format("good"), b" " * (MAX_MESSAGE_BYTES + 1))


def memory_of_a_gpu():
    made = pb.CudaSharedMemoryRegisterRequest(name="region")
    return lambda calls: calls.CudaSharedMemoryRegister(made), ("POST", "/v2/cudasharedmemory/region/region/register", b"")


def broken_load():
    made = pb.RepositoryModelLoadRequest(model_name="broken")
    return lambda calls: calls.RepositoryModelLoad(made), ("POST", "/v2/repository/models/broken/load", b"")


# Triton's: NOT_FOUND is 404, UNAVAILABLE 503, INTERNAL 500, UNIMPLEMENTED 501, and all others 400, of which it has
# INVALID_ARGUMENT and ALREADY_EXISTS. torchlane's others have statuses of their own.
STATUSES = [
    (infer("nope"), Code.NOT_FOUND, 404),
    (infer("broken"), Code.UNAVAILABLE, 503),
    (infer("good", name="z"), Code.INVALID_ARGUMENT, 400),
    (infer("failing"), Code.INTERNAL, 500),
    (memory_of_a_gpu(), Code.UNIMPLEMENTED, 501),
    (broken_load(), Code.FAILED_PRECONDITION, 400),
    (too_long(), Code.RESOURCE_EXHAUSTED, 413),
]


@pytest.mark.parametrize("how,code,status", STATUSES, ids=[code.name for _, code, _ in STATUSES])
def test_the_same_failure_has_its_code_and_its_status(faulty, how, code, status):
    """NOT_FOUND is 404, UNAVAILABLE 503, INTERNAL 500, UNIMPLEMENTED 501; INVALID_ARGUMENT, and what is not named here, 400. A
    full queue (429) and a deadline (504) are in test_overload.py, a region that is there already (409) in
    test_shared_memory_regions.py."""
    by_grpc, by_http = how
    refused(lambda: by_grpc(Calls(faulty)), code)
    rest.refused(rest.call(faulty, *by_http), status)


def test_an_error_is_one_text_for_people_and_one_word_for_programs(faulty):
    """An error over HTTP is {"error": "one line"} and no more; the reason of google.rpc.ErrorInfo over gRPC is in a header."""
    by_grpc, by_http = infer("nope")
    error = refused(lambda: by_grpc(Calls(faulty)), Code.NOT_FOUND)
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    answer = rest.call(faulty, *by_http)
    assert answer.json() == {"error": error.details()}
    assert answer.headers["torchlane-reason"] == "UNKNOWN_MODEL"
    assert b"UNKNOWN_MODEL" in details
