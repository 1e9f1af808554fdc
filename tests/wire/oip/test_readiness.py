"""What the server says of itself while it starts, while models come and go, and while it ends."""

import signal
import subprocess

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import repositories
import rest
from rpcs import REFUSALS, Calls, Code, channel, raw_of, refused, request
from server import PATIENCE, within


def x(model):
    return request(model, ("x", "FP32", [1]), raw=[np.float32(3).tobytes()])


def told(server):
    """(live, ready) over gRPC, and the HTTP statuses of both."""
    calls = Calls(server)
    live, ready = calls.ServerLive(pb.ServerLiveRequest()).live, calls.ServerReady(pb.ServerReadyRequest()).ready
    return (live, ready), tuple(rest.get(server, f"/v2/health/{what}").status for what in ("live", "ready"))


@pytest.fixture
def gate(tmp_path):
    """A file; as long as it is there what waits for it does."""
    path = tmp_path / "closed"
    yield path
    # A test that failed must not leave a load that does not end.
    path.unlink(missing_ok=True)


READY, NOT_READY = ((True, True), (200, 200)), ((True, False), (200, 503))


def says_not_ready(answer):
    """503, with a body that says so: `{"ready": false}`, or an error."""
    assert answer.status == 503, answer
    found = answer.json()
    assert found.get("ready") is False or isinstance(found.get("error"), str), found


def states(calls, model):
    """version -> (state, reason) of a model in the index."""
    rows = calls.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return {row.version: (row.state, row.reason) for row in rows if row.name == model}


def test_not_ready_while_the_first_models_load(start, gate):
    """While the first load runs the server is live but not ready, and the model is LOADING; afterwards all is READY."""
    gate.touch()
    server = start("slow", lambda folder: repositories.held_load(folder, "slow", 1, gate), "backend=fake", ready=False)
    calls = Calls(server)
    within("loading", lambda: [state for state, _ in states(calls, "slow").values()] == ["LOADING"])
    assert told(server) == NOT_READY
    says_not_ready(rest.get(server, "/v2/health/ready"))
    assert not calls.ModelReady(pb.ModelReadyRequest(name="slow")).ready
    says_not_ready(rest.get(server, "/v2/models/slow/ready"))
    refused(lambda: calls.ModelInfer(x("slow")), Code.UNAVAILABLE)
    gate.unlink()
    within("ready", lambda: told(server) == READY)
    assert states(calls, "slow") == {"1": ("READY", "")}
    assert calls.ModelReady(pb.ModelReadyRequest(name="slow")).ready
    raw_of(calls.ModelInfer(x("slow")))


def test_ready_whatever_becomes_of_a_model(start):
    """A model that failed to load, one that was unloaded, and a failed reload leave a server ready that serves others."""
    fill = lambda folder: repositories.fake(folder, good="", other="", bad='load_error = "broken"')
    server = start("mixed", fill, "backend=fake")
    calls = Calls(server)
    assert told(server) == READY
    calls.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
    assert told(server) == READY
    assert not calls.ModelReady(pb.ModelReadyRequest(name="other")).ready
    assert not calls.ModelReady(pb.ModelReadyRequest(name="bad")).ready
    for model in ("other", "bad"):
        says_not_ready(rest.get(server, f"/v2/models/{model}/ready"))
        refused(lambda: calls.ModelInfer(x(model)), Code.UNAVAILABLE)
    refused(lambda: calls.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="bad")), REFUSALS, "broken")
    assert told(server) == READY
    (row,) = [row for row in calls.RepositoryIndex(pb.RepositoryIndexRequest()).models if row.name == "bad"]
    assert row.state == "UNAVAILABLE" and "broken" in row.reason, row


def test_not_ready_before_one_model_serves(start):
    """A server of whose models none could be loaded is live but not ready, until one has been."""
    server = start("none", lambda folder: repositories.fake(folder, m='load_error = "broken"'), "backend=fake", ready=False)
    calls = Calls(server)
    within("the load has failed", lambda: [state for state, _ in states(calls, "m").values()] == ["UNAVAILABLE"])
    assert told(server) == NOT_READY
    folder = server.repository / "m/2"
    folder.mkdir()
    (folder / "model.pt").write_text("")
    calls.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"))
    within("ready", lambda: told(server) == READY)


def test_health_checks_are_those_of_grpc(start):
    """grpc.health.v1.Health/Check, as Triton has it: SERVING (1) for the server and each model that serves, NOT_SERVING (2) for one
    that does not; a service that nobody knows is NOT_FOUND."""
    server = start("health", lambda folder: repositories.fake(folder, good="", bad='load_error = "broken"'), "backend=fake")
    send = channel(server).unary_unary("/grpc.health.v1.Health/Check")

    def check(service):
        # Field 1 of the request is the service, field 1 of the answer the status.
        return send(b"\x0a" + bytes([len(service)]) + service.encode() if service else b"", timeout=PATIENCE)

    assert [check(service) for service in ("", "good", "bad")] == [b"\x08\x01", b"\x08\x01", b"\x08\x02"]
    refused(lambda: check("nope"), Code.NOT_FOUND)


def test_a_reload_is_not_felt(start, gate):
    """While a newer version loads the server is ready, and the old version is READY and answers, until the new one is live."""
    server = start("again", lambda folder: repositories.fake(folder, m=""), "backend=fake")
    calls = Calls(server)
    gate.touch()
    repositories.held_load(server.repository, "m", 2, gate)
    loading = calls.stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="m"), timeout=PATIENCE)
    within("version 2 is being loaded", lambda: states(calls, "m").get("2", ("", ""))[0] == "LOADING")
    assert states(calls, "m")["1"] == ("READY", "")
    assert told(server) == READY and calls.ModelReady(pb.ModelReadyRequest(name="m")).ready
    assert calls.ModelInfer(x("m")).model_version == "1"
    assert not loading.done()
    gate.unlink()
    loading.result()
    assert states(calls, "m")["2"] == ("READY", "")
    assert calls.ModelInfer(x("m")).model_version == "2"


def test_not_ready_before_the_end(start):
    """After SIGTERM the server is first not ready, though live and serving, through either door; then it ends with status 0."""
    server = start("ending", lambda folder: repositories.fake(folder, m=""), "backend=fake", "server.drain_delay=2s")
    calls = Calls(server)
    assert told(server) == READY
    server.process.send_signal(signal.SIGTERM)
    within("not ready", lambda: told(server) == NOT_READY, seconds=2)
    raw_of(calls.ModelInfer(x("m")))
    try:
        status = server.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        status = "none"
    assert status == 0, f"status {status} after SIGTERM"
