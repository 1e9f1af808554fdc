"""Classifies a picture with the sample model `digits`, by Triton's own client over HTTP.

    pip install 'tritonclient[http]' pillow
    python examples/triton_http.py 127.0.0.1:8080 tests/data/digits/png/3-0012.png
"""

import sys

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

PRIORITY_HIGH = 2


def main(address="127.0.0.1:8080", picture="tests/data/digits/png/3-0012.png"):
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=np.float32) / 255
    # As bytes behind the JSON (the binary extension); binary_data=False would write each number out.
    image = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    image.set_data_from_numpy(pixels.reshape(1, 1, 8, 8), binary_data=True)
    with triton.InferenceServerClient(address) as server:
        try:
            answer = server.infer(
                "digits",
                [image],
                outputs=[triton.InferRequestedOutput("probabilities", binary_data=True)],
                priority=PRIORITY_HIGH,
                timeout=5_000_000,  # microseconds: past them the server does not run it
            )
        except InferenceServerException as error:
            sys.exit(f"refused: {error.status()}: {error.message()}")
    probabilities = answer.as_numpy("probabilities")[0]
    digit = int(probabilities.argmax())
    version = answer.get_response()["model_version"]
    print(f"digit {digit} ({100 * probabilities[digit]:.1f} %), version {version}")


main(*sys.argv[1:])
