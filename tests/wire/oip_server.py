"""A small server of the Open Inference Protocol, for `torchlane bench --protocol oip`. It checks each request and ends by itself."""

import sys
from concurrent import futures

import grpc

if len(sys.argv) > 1 and sys.argv[1] == "--triton":  # Triton's own definition of the protocol, where its client is installed.
    from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc as rpc
else:
    from inference import grpc_service_pb2 as pb, grpc_service_pb2_grpc as rpc

PRIORITY = 2
TIMEOUT_US = 500_000


class Server(rpc.GRPCInferenceServiceServicer):
    def ModelMetadata(self, request, context):
        if request.name != "simple":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model '{request.name}' here")
        tensor = pb.ModelMetadataResponse.TensorMetadata
        answer = pb.ModelMetadataResponse(name="simple", versions=["1"], platform="test")
        answer.inputs.append(tensor(name="INPUT__0", datatype="FP32", shape=[-1, 16]))
        answer.inputs.append(tensor(name="INPUT__1", datatype="INT64", shape=[-1, 2]))
        return answer

    def ModelInfer(self, request, context):
        names = [(t.name, t.datatype, list(t.shape)) for t in request.inputs]
        wanted = [("INPUT__0", "FP32", [3, 16]), ("INPUT__1", "INT64", [3, 2])]
        lengths = [len(raw) for raw in request.raw_input_contents]
        asked = {key: value.int64_param for key, value in request.parameters.items()}
        if (names, lengths) != (wanted, [3 * 16 * 4, 3 * 2 * 8]):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{names} with {lengths} bytes")
        if asked != {"priority": PRIORITY, "timeout": TIMEOUT_US} or context.time_remaining() > TIMEOUT_US / 1e6:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"parameters {asked}")
        return pb.ModelInferResponse(model_name=request.model_name, model_version="1")


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination(60)


main()
