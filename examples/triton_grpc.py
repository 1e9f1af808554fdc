"""Classifies a picture with the sample model `digits`, by Triton's own client over gRPC.

    pip install 'tritonclient[grpc]' pillow
    python examples/triton_grpc.py 127.0.0.1:50051 tests/data/digits/png/3-0012.png
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

PRIORITY_HIGH = 2


def main(address="127.0.0.1:50051", picture="tests/data/digits/png/3-0012.png"):
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=np.float32) / 255
    image = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    image.set_data_from_numpy(pixels.reshape(1, 1, 8, 8))
    with triton.InferenceServerClient(address) as server:
        try:
            # client_timeout is the deadline, in seconds: it travels with the request.
            answer = server.infer(
                "digits",
                [image],
                outputs=[triton.InferRequestedOutput("probabilities")],
                priority=PRIORITY_HIGH,
                client_timeout=5,
            )
        except InferenceServerException as error:
            sys.exit(f"refused: {error.status()}: {error.message()}")
    probabilities = answer.as_numpy("probabilities")[0]
    digit = int(probabilities.argmax())
    version = answer.get_response().model_version
    print(f"digit {digit} ({100 * probabilities[digit]:.1f} %), version {version}")


main(*sys.argv[1:])
