"""One request through every door: the native API, Open Inference over gRPC and on a stream, REST with JSON and with bytes."""

import dataclasses

import grpc
import numpy as np
import pytest

import rest
from cases import DTYPES, ONE, TEXT, wire_name
from lanes import counted
from rpcs import Calls, channel, of_case, put, raw_of
from server import PATIENCE, within


class Native:
    """torchlane's own API, by its own definition."""

    def __init__(self, server, messages):
        package = messages("proto", "torchlane/v1/model_server.proto")
        self.Request, self.Tensor = package("torchlane.v1.InferRequest"), package("torchlane.v1.Tensor")
        self.send = channel(server).unary_unary(
            "/torchlane.v1.ModelServer/Infer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=package("torchlane.v1.InferResponse").FromString,
        )

    def infer(self, case, priority):
        inputs = [
            self.Tensor(name=name, datatype=wire_name(array), shape=array.shape, raw=array.tobytes())
            for name, array in case.inputs.items()
        ]
        asked = self.Request(model=case.model, version=case.version, priority=priority, inputs=inputs)
        answer = self.send(asked, timeout=PATIENCE)
        return answer.version, {out.name: (out.datatype, list(out.shape), out.raw) for out in answer.outputs}


class Unary:
    def __init__(self, server, messages):
        self.calls = Calls(server)

    def infer(self, case, priority):
        asked = of_case(case)
        put(asked.parameters, "priority", uint64=priority)
        answer = self.calls.ModelInfer(asked)
        return answer.model_version, raw_of(answer)


class Stream(Unary):
    def infer(self, case, priority):
        asked = of_case(case)
        put(asked.parameters, "priority", int64=priority)
        (answer,) = list(self.calls.ModelStreamInfer(iter([asked])))
        assert not answer.error_message, answer.error_message
        return answer.infer_response.model_version, raw_of(answer.infer_response)


class Json:
    def __init__(self, server, messages):
        self.server = server

    def infer(self, case, priority):
        inputs = [rest.tensor(name, wire_name(array), array) for name, array in case.inputs.items()]
        answer = rest.infer(self.server, case.model, {"inputs": inputs, "parameters": {"priority": priority}})
        found = {}
        for name, out in answer.outputs().items():
            array = np.array(out["data"], DTYPES[out["datatype"]])
            found[name] = (out["datatype"], out["shape"], array.tobytes())
        return answer.json()["model_version"], found


class Bytes:
    def __init__(self, server, messages):
        self.server = server

    def infer(self, case, priority):
        inputs, tails = [], []
        for name, array in case.inputs.items():
            inputs.append(rest.binary_tensor(name, wire_name(array), array.shape, array.tobytes()))
            tails.append(array.tobytes())
        head = {"inputs": inputs, "parameters": {"priority": priority, "binary_data_output": True}}
        answer = rest.infer(self.server, case.model, *rest.with_tail(head, *tails))
        found = {name: (out["datatype"], out["shape"], out["raw"]) for name, out in answer.outputs().items()}
        length = int(answer.headers[rest.HEADER_LENGTH.lower()])
        return rest.strict(answer.body[:length])["model_version"], found


DOORS = [Native, Unary, Stream, Json, Bytes]
HISTOGRAMS = ("request", "queue", "batch_wait", "compute")


def histograms(server, model):
    """How many requests of the model each histogram has, and the sizes of their batches together."""
    now = {name: server.metric(f"torchlane_{name}_duration_seconds_count", model=model) for name in HISTOGRAMS}
    now["batch_size_sum"] = server.metric("torchlane_batch_size_sum", model=model)
    return now


@pytest.mark.parametrize("case", [ONE, TEXT], ids=lambda case: case.model)
def test_the_same_bytes(server, messages, case):
    """Every door gives the same answer to the last bit: version, names, datatypes, shapes, bytes."""
    answers = {door.__name__: door(server, messages).infer(case, 3) for door in DOORS}
    for name, answer in answers.items():
        assert answer == answers["Native"], f"{name} answers {answer}, the native API {answers['Native']}"


@pytest.mark.parametrize("priority,lane", [(1, "CRITICAL"), (2, "HIGH"), (3, "NORMAL"), (4, "LOW")])
def test_the_same_lane_and_the_same_metrics(server, messages, priority, lane):
    """Through every door a request is counted once, in its lane, with outcome ok, in the same series, with the same rows."""
    for door in DOORS:
        before, times = counted(server, "digits"), histograms(server, "digits")
        door(server, messages).infer(ONE, priority)
        within(f"{door.__name__} is counted", lambda: counted(server, "digits") != before)
        after = counted(server, "digits")
        grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
        assert grown == {(lane, "ok"): 1}, f"{door.__name__} counts {grown}"
        within("its batch is counted", lambda: histograms(server, "digits")["batch_size_sum"] > times["batch_size_sum"])
        now = histograms(server, "digits")
        gained = {name: now[name] - times[name] for name in now}
        assert gained == {**{name: 1 for name in HISTOGRAMS}, "batch_size_sum": 2}, f"{door.__name__}: {gained}"


def test_the_same_refusal(server, messages):
    """Through every door a request for what is not there is counted with the same outcome, and under no name that its caller
    made up."""
    nope = dataclasses.replace(ONE, model="nope")
    wrong = dataclasses.replace(ONE, inputs={"picture": ONE.inputs["image"]})
    for case, model, outcome in ((nope, "", "UNKNOWN_MODEL"), (wrong, "digits", "UNKNOWN_INPUT")):
        for door in DOORS:
            before = counted(server, model)
            with pytest.raises((grpc.RpcError, AssertionError)):
                door(server, messages).infer(case, 2)
            within(f"{door.__name__} is counted", lambda: counted(server, model) != before)
            after = counted(server, model)
            grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
            assert grown == {("HIGH", outcome): 1}, f"{door.__name__} counts {grown}"
    assert server.metric("torchlane_requests_total", model="nope") == 0
