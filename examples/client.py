"""Sends the held-out digits to torchlane in batches of 16 and counts how many it gets right.

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. proto/torchlane/v1/model_server.proto
    PYTHONPATH=. python examples/client.py 127.0.0.1:50051
"""

import array
import struct
import sys

import grpc
from torchlane.v1 import model_server_pb2 as pb, model_server_pb2_grpc as rpc

BATCH = 16


def held_out(path="tests/data/digits/heldout.bin"):
    """Yields (64 pixels from 0 to 1, label)."""
    with open(path, "rb") as file:
        (count,) = struct.unpack("<I", file.read(4))
        for _ in range(count):
            record = file.read(65)
            yield [pixel / 16 for pixel in record[:64]], record[64]


def main(address):
    pictures = list(held_out())
    right = 0
    with grpc.insecure_channel(address) as channel:
        server = rpc.ModelServerStub(channel)
        for at in range(0, len(pictures), BATCH):
            group = pictures[at : at + BATCH]
            pixels = array.array("f", [value for picture, _ in group for value in picture])
            image = pb.Tensor(name="image", datatype="FP32", shape=[len(group), 1, 8, 8], raw=pixels.tobytes())
            request = pb.InferRequest(model="digits", inputs=[image], priority=pb.HIGH)
            try:
                # The deadline travels with the request: past it the server does not run it.
                answer = server.Infer(request, timeout=5)
            except grpc.RpcError as error:
                sys.exit(f"refused: {error.code().name}: {error.details()}")
            rows = array.array("f", answer.outputs[0].raw)
            for i, (_, label) in enumerate(group):
                scores = rows[i * 10 : i * 10 + 10]
                right += scores.index(max(scores)) == label
    print(f"{len(pictures)} pictures, {right} right ({100 * right / len(pictures):.1f} %), version {answer.version}")


main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
