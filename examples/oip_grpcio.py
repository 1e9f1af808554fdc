"""Classifies a picture with the sample model `digits`, over the Open Inference Protocol by plain grpcio.

    pip install grpcio grpcio-tools pillow
    python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. \
        proto/inference/grpc_service.proto proto/inference/model_config.proto
    PYTHONPATH=. python examples/oip_grpcio.py 127.0.0.1:50051 tests/data/digits/png/3-0012.png
"""

import array
import sys

import grpc
from PIL import Image
from inference import grpc_service_pb2 as pb, grpc_service_pb2_grpc as rpc

PRIORITY_HIGH = 2


def main(address="127.0.0.1:50051", picture="tests/data/digits/png/3-0012.png"):
    pixels = array.array("f", [pixel / 255 for pixel in Image.open(picture).convert("L").tobytes()])
    request = pb.ModelInferRequest(
        model_name="digits",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 1, 8, 8])],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
        # One entry for each input, row-major and little-endian. The other way is `contents` of the input.
        raw_input_contents=[pixels.tobytes()],
    )
    request.parameters["priority"].int64_param = PRIORITY_HIGH
    with grpc.insecure_channel(address) as channel:
        server = rpc.GRPCInferenceServiceStub(channel)
        if not server.ModelReady(pb.ModelReadyRequest(name="digits"), timeout=5).ready:
            sys.exit("digits is not ready")
        try:
            # The deadline travels with the request: past it the server does not run it.
            answer = server.ModelInfer(request, timeout=5)
        except grpc.RpcError as error:
            sys.exit(f"refused: {error.code().name}: {error.details()}")
    probabilities = array.array("f", answer.raw_output_contents[0])
    digit = probabilities.index(max(probabilities))
    print(f"digit {digit} ({100 * probabilities[digit]:.1f} %), version {answer.model_version}")


main(*sys.argv[1:])
