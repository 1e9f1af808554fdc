"""Requests over gRPC, message by message, by Triton's own definition of the protocol (tritonclient brings it)."""

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from cases import DTYPES, wire_name
from rest import one_line
from server import PATIENCE

Code = grpc.StatusCode
# A bad request is one of these, by what is bad about it; what went wrong within the server is none of them.
REFUSALS = {Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED}
# Plain clients read 4 MiB at most.
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
channels = {}


def channel(server):
    if server.grpc not in channels:
        channels[server.grpc] = grpc.insecure_channel(server.grpc, options=UNLIMITED)
    return channels[server.grpc]


class Calls:
    """The service's calls, each with a deadline: a server that does not answer fails the test."""

    def __init__(self, server):
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel(server))

    def __getattr__(self, name):
        method = getattr(self.stub, name)
        return lambda request, timeout=PATIENCE, **rest: method(request, timeout=timeout, **rest)


def put(parameters, key, **kind):
    """A parameter of that kind: `put(request.parameters, "priority", int64=2)`."""
    ((name, value),) = kind.items()
    setattr(parameters[key], f"{name}_param", value)


def request(model, *tensors, raw=(), **fields):
    """`tensors`: (name, datatype, shape) or (name, datatype, shape, contents)."""
    made = pb.ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, *contents in tensors:
        made.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents[0] if contents else None)
    made.raw_input_contents.extend(raw)
    return made


def of_case(case, **fields):
    """The case as a request with raw bytes."""
    tensors = [(name, wire_name(array), array.shape) for name, array in case.inputs.items()]
    raw = [array.tobytes() for array in case.inputs.values()]
    return request(case.model, *tensors, raw=raw, model_version=case.version, **fields)


def raw_of(response):
    """(datatype, shape, bytes) of each output by name. Answers are raw: one entry for each output, and no contents."""
    assert len(response.raw_output_contents) == len(response.outputs), "one raw entry for each output"
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents):
        assert not output.HasField("contents"), f"{output.name} came twice, as contents and raw"
        found[output.name] = (output.datatype, list(output.shape), raw)
    return found


def arrays(response):
    """Each output by name as an array."""
    return {
        name: np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
        for name, (datatype, shape, raw) in raw_of(response).items()
    }


def check(case, response):
    case.check(arrays(response).get, response.model_version)


def refused(send, codes, *says):
    """`send()` fails with (one of) the codes, and one line that has these words. Returns the error."""
    allowed = codes if isinstance(codes, (set, tuple)) else {codes}
    with pytest.raises(grpc.RpcError) as caught:
        send()
    error = caught.value
    assert error.code() in allowed, f"{error.code()} instead of {codes}: {error.details()}"
    one_line(error.details())
    for words in says:
        assert words in error.details(), f"no '{words}' in: {error.details()}"
    return error
