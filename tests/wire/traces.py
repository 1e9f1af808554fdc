"""Traces of the real server with libtorch, as OpenTelemetry's collector gets them.

Two requests that share a batch, each with its caller's trace: their spans, phases and links. Then a collector that is away:
no request notices, what is lost is counted, and once it is there spans come.

Needs a server (target/debug/torchlane, or WIRE_SERVER), and the Python and COLLECTOR of scripts/tools.sh.
"""

import collections
import json
import os
import shutil
import signal
import struct
import subprocess

import grpc
import running
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from running import PATIENCE, Server, free_port, within, work

# A batch is what waits, and not what has been learned to be worth one: how many requests a pass has is then no matter of times.
ALL_THAT_WAITS = "executors.learned_batches=false"


class Collector:
    """OpenTelemetry's own, on that port; what it is sent it writes to a file: messages, each behind its length."""

    def __init__(self, port):
        self.file, self.log = work / f"spans-{port}", work / f"collector-{port}.log"
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}}},
            "exporters": {"file": {"path": str(self.file), "format": "proto", "flush_interval": "100ms"}},
            "service": {
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                # It would serve metrics of its own, on a port that may be taken.
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        with open(self.log, "w") as log:
            command = [os.environ["COLLECTOR"], "--config", f"yaml:{json.dumps(config)}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        running.started.append(self.process)
        within("the collector is ready", self.is_ready)

    def is_ready(self):
        assert self.process.poll() is None, f"the collector does not start: {self.log.read_text()}"
        return "Everything is ready" in self.log.read_text()

    def stop(self):
        """What it has not written yet it writes now."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        assert status == 0, f"status {status}: {self.log.read_text()}"

    def messages(self):
        """Those that are written in full."""
        written = self.file.read_bytes() if self.file.exists() else b""
        while len(written) >= 4:
            end = 4 + int.from_bytes(written[:4], "big")
            if len(written) < end:
                return
            yield ExportTraceServiceRequest.FromString(written[4:end])
            written = written[end:]

    def spans(self):
        """Every span by its name."""
        found = collections.defaultdict(list)
        for sent in (sent for message in self.messages() for sent in message.resource_spans):
            assert fields(sent.resource)["service.name"] == "torchlane", sent.resource
            for span in (span for scope in sent.scope_spans for span in scope.spans):
                found[span.name].append(span)
        return found


def child(spans, parent, name):
    found = [s for s in spans[name] if (s.trace_id, s.parent_span_id) == (parent.trace_id, parent.span_id)]
    assert len(found) == 1, f"{len(found)} spans {name} in {parent}"
    return found[0]


def fields(of):
    """Attributes of a span or resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def repository():
    """digits, of which no request runs before two are there: with ALL_THAT_WAITS, however little a larger batch saves."""
    digits = work / "models/digits"
    (digits / "1").mkdir(parents=True)
    shutil.copy("models/digits/1/model.pt", digits / "1")
    (digits / "model.toml").write_text(
        '[batching]\nmax_batch = 2\nmax_delay = "10s"\n[[inputs]]\nname = "x"\ndtype = "FP32"\nshape = [-1, 1, 8, 8]\n'
    )
    return work / "models"


def together(stub, pb, callers):
    """A request for each of `callers`, a traceparent or None, at once; their answers."""
    image = pb.Tensor(name="x", datatype="FP32", shape=[1, 1, 8, 8], raw=struct.pack("<64f", *[0.5] * 64))
    request = pb.InferRequest(model="digits", inputs=[image], priority=pb.HIGH)
    headers = [[("traceparent", caller), ("x-tenant", "wire")] if caller else [] for caller in callers]
    calls = [stub.Infer.future(request, timeout=PATIENCE, metadata=each) for each in headers]
    return [call.result() for call in calls]


def caller(number, sampled=1):
    return f"00-{number:032x}-{number + 1:016x}-{sampled:02x}"


def check_requests(collector, server, pb, stub):
    """Two traced requests in one batch; two that their callers do not trace; one that fails."""
    answers = together(stub, pb, [caller(0xA), caller(0xB)])
    assert [answer.timing.batch_size for answer in answers] == [2, 2], answers
    together(stub, pb, [caller(0xC, sampled=0), None])
    try:
        wrong = pb.InferRequest(model="digits", request_id="wrong")
        stub.Infer(wrong, timeout=PATIENCE, metadata=[("traceparent", caller(0xD))])
        raise AssertionError("a request without its input was answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    (line,) = within("its line in the log", lambda: server.lines(target="torchlane::access", request_id="wrong"))
    assert line["trace_id"] == f"{0xD:032x}", line
    # What is not sent yet is sent at the end.
    server.stop()
    collector.stop()

    spans = collector.spans()
    requests = {int.from_bytes(span.trace_id, "big"): span for span in spans["infer"]}
    assert sorted(requests) == [0xA, 0xB, 0xD], f"traced: {sorted(requests)}"
    failed = requests.pop(0xD)
    assert (failed.status.code, fields(failed)["outcome"]) == (Status.STATUS_CODE_ERROR, "MISSING_INPUT"), failed
    # The other pass has no traced request in it.
    (batch,) = spans["batch"]
    assert not batch.parent_span_id, batch
    assert {link.span_id for link in batch.links} == {span.span_id for span in requests.values()}, batch
    told = fields(batch)
    assert (told["model"], told["requests"], told["rows"]) == ("digits", 2, 2), told
    for number, span in requests.items():
        assert int.from_bytes(span.parent_span_id, "big") == number + 1, span
        assert span.kind == Span.SPAN_KIND_SERVER, span
        told = fields(span)
        wanted = {"model": "digits", "version": 1, "lane": "HIGH", "tenant": "wire", "outcome": "ok", "rows": 1}
        assert wanted.items() <= told.items(), told
        queue, wait, compute = (child(spans, span, name) for name in ("queue", "batch_wait", "compute"))
        assert span.start_time_unix_nano <= queue.start_time_unix_nano, (span, queue)
        assert queue.end_time_unix_nano == wait.start_time_unix_nano, (queue, wait)
        assert wait.end_time_unix_nano == compute.start_time_unix_nano, (wait, compute)
        assert [link.span_id for link in compute.links] == [batch.span_id], compute
    print("ok two requests in a batch: their callers' traces, phases, links both ways; SIGTERM sends them", flush=True)

    (load,) = spans["reload"]
    assert fields(load)["asker"] == "start" and fields(load)["outcome"] == "ok", load
    phases = [child(spans, load, name) for name in ("verify", "load", "swap")]
    starts = [phase.start_time_unix_nano for phase in phases]
    assert starts == sorted(starts) and load.start_time_unix_nano <= starts[0], (load, phases)
    print("ok the load of a model, with its phases", flush=True)


def check_away(models, pb, rpc):
    port = free_port()
    settings = [f"telemetry.otlp_endpoint=http://127.0.0.1:{port}", "telemetry.sample=1.0", "telemetry.timeout=500ms"]
    settings.append(ALL_THAT_WAITS)
    server = Server(models, *settings)
    stub = rpc.ModelServerStub(grpc.insecure_channel(server.grpc))
    together(stub, pb, [None, None])
    within("they are lost", lambda: server.metric('torchlane_spans_total{result="failed"}') > 0)
    together(stub, pb, [None, None])
    assert server.metric('torchlane_spans_total{result="exported"}') == 0
    (said,) = server.lines(level="WARN", target="torchlane::telemetry")
    assert "telemetry.otlp_endpoint" in said["message"], said
    collector = Collector(port)

    def has_come():
        together(stub, pb, [None, None])
        return collector.spans()["infer"]

    within("the collector is found again", has_come)
    server.stop()
    collector.stop()
    print("ok a collector that is away: no request notices, what is lost is counted, and it is found again", flush=True)


def main():
    pb, rpc = running.stubs()
    port = free_port()
    collector, models = Collector(port), repository()
    server = Server(models, ALL_THAT_WAITS, f"telemetry.otlp_endpoint=http://127.0.0.1:{port}", "telemetry.sample=0.0")
    check_requests(collector, server, pb, rpc.ModelServerStub(grpc.insecure_channel(server.grpc)))
    check_away(models, pb, rpc)
    print("3 passed, 0 failed")


running.run(main)
