"""The statistics extension: what is counted, and how."""

import time

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import repositories
import rest
from cases import ONE
from rpcs import Calls, Code, of_case, raw_of, refused, request
from server import within

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def rows(count):
    """A request with that many rows to the model `counted`."""
    return request("counted", ("x", "FP32", [count, 4]), raw=[np.ones([count, 4], np.float32).tobytes()])


class Grpc:
    def __init__(self, server):
        self.calls = Calls(server)

    def all(self, model="", version=""):
        """The statistics of the protocol's message as plain values."""
        found = self.calls.ModelStatistics(pb.ModelStatisticsRequest(name=model, version=version)).model_stats
        return [
            {
                "name": one.name,
                "version": one.version,
                "last_inference": one.last_inference,
                "inference_count": one.inference_count,
                "execution_count": one.execution_count,
                "inference_stats": {
                    name: {"count": getattr(one.inference_stats, name).count, "ns": getattr(one.inference_stats, name).ns}
                    for name in DURATIONS
                },
                "batch_stats": {batch.batch_size: batch.compute_infer.count for batch in one.batch_stats},
            }
            for one in found
        ]


class Rest:
    def __init__(self, server):
        self.server = server

    def all(self, model="", version=""):
        version = f"/versions/{version}" if version else ""
        path = f"/v2/models/{model}{version}/stats" if model else "/v2/models/stats"
        found = rest.get(self.server, path).ok()["model_stats"]
        for one in found:
            one["batch_stats"] = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in one["batch_stats"]}
        return found


DOORS = {"grpc": Grpc, "rest": Rest}


@pytest.fixture(params=DOORS)
def door(request, closed_server):
    return DOORS[request.param](closed_server)


def one(door, model, version=""):
    (found,) = door.all(model, version)
    return found


def gain(door, model, send, settled):
    """What `send` adds to the counts of a model: (rows, passes, successes, failures), and before and after."""
    before = one(door, model)
    send()

    def counts(stats):
        kinds = stats["inference_stats"]
        return (stats["inference_count"], stats["execution_count"], kinds["success"]["count"], kinds["fail"]["count"])

    def grown():
        now = one(door, model)
        return now if settled(now, before) else None

    after = within("the request is counted", grown, seconds=5)
    return tuple(b - a for a, b in zip(counts(before), counts(after))), before, after


def success_counted(now, before):
    return now["inference_stats"]["success"]["count"] > before["inference_stats"]["success"]["count"]


def fail_counted(now, before):
    return now["inference_stats"]["fail"]["count"] > before["inference_stats"]["fail"]["count"]


@pytest.mark.parametrize("count", [1, 8])
def test_rows_and_passes(closed_server, door, count):
    """A request with 8 rows adds 8 to inference_count, 1 to execution_count, and 1 to success."""
    calls = Calls(closed_server)
    since = time.time_ns() // 1_000_000
    counts, before, after = gain(door, "counted", lambda: calls.ModelInfer(rows(count)), success_counted)
    assert counts == (count, 1, 1, 0), f"rows, passes, successes, failures: {counts}"
    until = time.time_ns() // 1_000_000
    assert since <= after["last_inference"] <= until, "last_inference is in milliseconds since 1970"
    gained = after["batch_stats"].get(count, 0) - before["batch_stats"].get(count, 0)
    assert gained == 1, f"batch_stats has the pass of {count} rows: {after['batch_stats']}"


def test_times_are_in_nanoseconds(closed_server, door):
    """A success adds its whole time, and the times of its parts, which are no longer."""
    calls = Calls(closed_server)
    began = time.monotonic_ns()
    _, before, after = gain(door, "counted", lambda: calls.ModelInfer(rows(2)), success_counted)
    took = time.monotonic_ns() - began

    def added(name):
        return after["inference_stats"][name]["ns"] - before["inference_stats"][name]["ns"]

    assert 0 < added("success") <= took, f"{added('success')} of {took} ns"
    parts = {name: added(name) for name in ("queue", "compute_input", "compute_infer", "compute_output")}
    assert 0 < parts["compute_infer"] and sum(parts.values()) <= took, parts


def test_failures(closed_server, door):
    """A request that fails counts as a failure, and not as an inference."""
    calls = Calls(closed_server)
    bad = request("failing", ("x", "FP32", [1]), raw=[np.float32(-1).tobytes()])
    counts, _, _ = gain(door, "failing", lambda: refused(lambda: calls.ModelInfer(bad), Code.INTERNAL), fail_counted)
    assert (counts[0], counts[2], counts[3]) == (0, 0, 1), f"rows, passes, successes, failures: {counts}"


def test_a_version_is_counted_by_itself(closed_server, door):
    """Statistics are of a version; without one, of every version that is loaded."""
    calls = Calls(closed_server)
    both = {found["version"] for found in door.all("digits")}
    assert both == {"1", "2"}, both
    before = {version: one(door, "digits", version)["inference_count"] for version in both}
    old = of_case(ONE)
    old.model_version = "1"
    raw_of(calls.ModelInfer(old))
    within("version 1 is counted", lambda: one(door, "digits", "1")["inference_count"] == before["1"] + 2, seconds=5)
    assert one(door, "digits", "2")["inference_count"] == before["2"]


def test_all_models(door):
    """Without a name the statistics are of all models; nothing is cached, so no hits and misses are counted."""
    found = door.all()
    assert {each["name"] for each in found} >= {"digits", "tagger", "counted", "failing"}
    for each in found:
        for name in ("cache_hit", "cache_miss"):
            assert each["inference_stats"][name]["count"] == 0, each


def test_what_a_version_takes_of_the_memory(closed_server):
    """memory_usage is a line for the CPU's memory: type, id 0, bytes. response_stats are of models that answer a request several
    times, of which there are none."""
    for one in Calls(closed_server).ModelStatistics(pb.ModelStatisticsRequest()).model_stats:
        assert [(usage.type, usage.id) for usage in one.memory_usage] == [("CPU", 0)], one.name
        assert not one.response_stats, one.name
    for one in rest.get(closed_server, "/v2/models/stats").ok()["model_stats"]:
        (usage,) = one["memory_usage"]
        assert (usage["type"], usage["id"]) == ("CPU", 0) and isinstance(usage["byte_size"], int), one["name"]


def test_warm_up_is_not_counted(start):
    """Passes of a warm-up are no inferences."""
    server = start("warm", repositories.samples)
    for door in DOORS.values():
        for each in door(server).all():
            assert (each["inference_count"], each["execution_count"], each["last_inference"]) == (0, 0, 0), each


def test_unknown_models_are_not_found(closed_server):
    """Statistics of what is not there are NOT_FOUND (404)."""
    calls = Calls(closed_server)
    for model, version in (("nope", ""), ("digits", "9")):
        asked = pb.ModelStatisticsRequest(name=model, version=version)
        refused(lambda: calls.ModelStatistics(asked), Code.NOT_FOUND)
    for path in ("/v2/models/nope/stats", "/v2/models/digits/versions/9/stats"):
        rest.refused(rest.get(closed_server, path), 404)
