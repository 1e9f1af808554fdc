"""Ends the server while a client works: what is in flight must end well, and health must turn first."""

import os
import signal
import sys
import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torchlane.v1 import model_server_pb2 as pb, model_server_pb2_grpc as rpc


def main(address: str, pid: int) -> None:
    with grpc.insecure_channel(address) as channel:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        stub = rpc.ModelServerStub(channel)
        long = pb.Tensor(name="tokens", datatype="INT64", shape=[20_000], raw=bytes(8 * 20_000))
        weights = pb.Tensor(name="weights", datatype="FP32", shape=[20_000], raw=bytes(4 * 20_000))
        request = pb.InferRequest(model="tagger", inputs=[long, weights])
        call = stub.Infer.future(request, timeout=60)
        started = threading.Event()
        threading.Timer(0.05, started.set).start()
        started.wait()
        os.kill(pid, signal.SIGTERM)
        status = next(statuses).status
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
        assert len(call.result().outputs) == 3


main(sys.argv[1], int(sys.argv[2]))
