"""Full queues and deadlines. The model `held` does not end its pass as long as a file is there, so nothing here races."""

import contextlib
import http.client
import json
import threading

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import repositories
import rest
from rpcs import Calls, Code, put, raw_of, refused, request
from server import PATIENCE, within

ONE_TICKET = ["admission.max_in_flight=1", "admission.queue_depth=2", "executors.threads=1"]


@pytest.fixture(scope="module")
def held(start, tmp_path_factory):
    """One ticket, two places in each lane, and a way to hold what has the ticket."""
    gate = tmp_path_factory.mktemp("gate") / "closed"
    # Long enough to be left to an executor: a thread of the wire must not be held.
    text = f"delay_ms = 20\nhang_while = {json.dumps(str(gate))}"
    server = start("overload", lambda folder: repositories.fake(folder, held=text), "backend=fake", *ONE_TICKET)
    server.gate = gate
    return server


def message(id="", **parameters):
    made = request("held", ("x", "FP32", [1]), raw=[np.float32(3).tobytes()], id=id)
    for key, kind in parameters.items():
        put(made.parameters, key, **kind)
    return made


def body(**parameters):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3.0]}], "parameters": parameters}


class Callers:
    """Requests that wait for the gate, each in a thread of its own."""

    def __init__(self, server):
        self.server, self.calls, self.threads = server, Calls(server), []
        self.answers, self.failures = [], []

    def ask(self, id, **parameters):
        def run():
            try:
                raw_of(self.calls.ModelInfer(message(id, **parameters)))
                self.answers.append(id)
            except Exception as error:
                self.failures.append((id, error))

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def wait_for(self, in_flight, waiting):
        def there():
            tickets = self.server.metric("torchlane_in_flight")
            return (tickets, self.server.metric("torchlane_queue_depth", stage="admission")) == (in_flight, waiting)

        within(f"{in_flight} in flight and {waiting} waiting", there)

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request was not answered"


@contextlib.contextmanager
def closed_gate(server):
    """Passes do not end within this block; at its end those that wait are answered."""
    callers = Callers(server)
    server.gate.touch()
    try:
        callers.ask("first")
        callers.wait_for(1, 0)
        yield callers
    finally:
        server.gate.unlink()
        callers.join()
    assert not callers.failures, callers.failures


def test_a_full_queue(held):
    """When the lane's queue is full the next request is RESOURCE_EXHAUSTED (429) at once, in band on a stream; those that wait
    are answered."""
    with closed_gate(held) as callers:
        for id in ("second", "third"):
            callers.ask(id)
        callers.wait_for(1, 2)
        error = refused(lambda: callers.calls.ModelInfer(message()), Code.RESOURCE_EXHAUSTED)
        details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
        assert b"QUEUE_FULL" in details, "the reason is in google.rpc.ErrorInfo"
        rest.refused(rest.infer(held, "held", body()), 429)
        (answer,) = list(callers.calls.ModelStreamInfer(iter([message()])))
        rest.one_line(answer.error_message)
        # Each lane has a queue of its own.
        callers.ask("urgent", priority={"int64": 1})
        callers.wait_for(1, 3)
    assert sorted(callers.answers) == ["first", "second", "third", "urgent"]
    order = callers.answers
    assert order.index("urgent") < order.index("third"), f"an urgent request was overtaken: {order}"


def test_the_timeout_parameter_is_a_deadline(held):
    """Parameter timeout (microseconds) counts from the request's arrival, waiting included: DEADLINE_EXCEEDED (504)."""
    with closed_gate(held) as callers:
        refused(lambda: callers.calls.ModelInfer(message(timeout={"int64": 50_000})), Code.DEADLINE_EXCEEDED)
        rest.refused(rest.infer(held, "held", body(timeout=50_000)), 504)
        (answer,) = list(callers.calls.ModelStreamInfer(iter([message(timeout={"int64": 50_000})])))
        rest.one_line(answer.error_message)
    assert callers.answers == ["first"]


def test_x_timeout_ms_is_a_deadline(held):
    """Header x-timeout-ms (milliseconds) is a deadline too."""
    with closed_gate(held):
        rest.refused(rest.infer(held, "held", body(), {"x-timeout-ms": "50"}), 504)


def test_grpc_timeout_is_a_deadline(held):
    """grpc-timeout is a deadline on this API as on every other."""
    with closed_gate(held) as callers:
        refused(lambda: callers.calls.ModelInfer(message(), timeout=0.05), Code.DEADLINE_EXCEEDED)


def test_the_nearest_deadline_counts(held):
    """Of several deadlines the nearest one counts, whichever it is. A far one alone would outlast the test."""
    far = 10 * PATIENCE
    with closed_gate(held) as callers:
        both = message(timeout={"int64": 50_000})
        refused(lambda: callers.calls.ModelInfer(both, timeout=far), Code.DEADLINE_EXCEEDED)
        both = message(timeout={"int64": far * 1_000_000})
        refused(lambda: callers.calls.ModelInfer(both, timeout=0.05), Code.DEADLINE_EXCEEDED)
        near, long = {"x-timeout-ms": "50"}, {"x-timeout-ms": str(far * 1000)}
        rest.refused(rest.infer(held, "held", body(timeout=far * 1_000_000), near), 504)
        rest.refused(rest.infer(held, "held", body(timeout=50_000), long), 504)


def test_a_deadline_that_has_passed_runs_nothing(held):
    """A request whose deadline passed while it waited never runs."""
    with closed_gate(held) as callers:
        rest.refused(rest.infer(held, "held", body(timeout=20_000)), 504)
        before = executed(callers.calls)
    raw_of(callers.calls.ModelInfer(message()))
    within("the first and the last have run", lambda: executed(callers.calls) >= before + 2, seconds=5)
    assert executed(callers.calls) == before + 2, "what was late has run all the same"


def executed(calls):
    (found,) = calls.ModelStatistics(pb.ModelStatisticsRequest(name="held")).model_stats
    return found.execution_count


def test_a_caller_that_leaves_frees_its_place(held):
    """A REST caller that hangs up while it waits gives its place to others."""
    with closed_gate(held) as callers:
        callers.ask("second")
        callers.wait_for(1, 1)
        gone = http.client.HTTPConnection(held.http, timeout=PATIENCE)
        gone.request("POST", "/v2/models/held/infer", json.dumps(body()))
        callers.wait_for(1, 2)
        gone.close()
        callers.wait_for(1, 1)
    assert sorted(callers.answers) == ["first", "second"]
