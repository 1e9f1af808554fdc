"""Makes the steps of the ensemble models/read-digits: what is before and after models/digits, as modules without parameters.

Run from the repository root, after digits.py: python tools/models/read_digits.py
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from archive import deterministic, save, save_samples

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
PNG = ROOT / "tests" / "data" / "digits" / "png"


class Decode(nn.Module):
    """Grey pictures UINT8 [batch, height, width], light ink on a dark ground -> ink FP32 [batch, 1, 8, 8], 0 to 1."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ink = image.unsqueeze(1).float() / 255
        # The mean over each cell of an 8 x 8 grid: the data set's own pixels are made so, of bitmaps of 32 x 32.
        return F.adaptive_avg_pool2d(ink, [8, 8])


class Best(NamedTuple):
    digits: torch.Tensor
    scores: torch.Tensor


class Top(nn.Module):
    """Probabilities FP32 [batch, 10] -> the three most probable digits INT64 [batch, 3], best first, and their FP32 scores."""

    def forward(self, probabilities: torch.Tensor) -> Best:
        scores, digits = probabilities.topk(3)
        return Best(digits, scores)


def pictures() -> torch.Tensor:
    """The ten PNG images, UINT8 [10, 8, 8]."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in sorted(PNG.glob("*.png"))]))


def made(module: nn.Module, model: str) -> torch.jit.ScriptModule:
    """The module as a server will run it."""
    path = MODELS / model / "1" / "model.pt"
    save(torch.jit.script(module.eval()), path)
    print(f"{model}: {path.stat().st_size} bytes")
    return torch.jit.load(str(path))


def main() -> None:
    deterministic(0)
    decode, top = made(Decode(), "digits-decode"), made(Top(), "digits-top")
    digits = torch.jit.load(str(MODELS / "digits" / "2" / "model.pt"))

    small = pictures()
    # Each pixel as a block of 4 x 4, and a picture whose sides 8 does not divide.
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    slanted = torch.arange(28 * 20).remainder(256).to(torch.uint8).reshape(1, 28, 20)
    images = [small[3:4], large[:2].contiguous(), slanted]
    save_samples(
        [{"input:image": image, "output:ink": decode(image)} for image in images],
        MODELS / "digits-decode" / "1" / "samples.safetensors",
    )
    assert torch.equal(decode(small), small.unsqueeze(1).float() / 255), "pictures of 8 x 8 are not scaled"
    assert decode(large).allclose(decode(small)), "the mean of a block is its pixel"

    probabilities = digits(decode(small))
    best = top(probabilities)
    assert best.digits[:, 0].tolist() == list(range(10)), best.digits
    save_samples(
        [{"input:probabilities": probabilities, "output:digits": best.digits, "output:scores": best.scores}],
        MODELS / "digits-top" / "1" / "samples.safetensors",
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
