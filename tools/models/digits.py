"""Makes models/digits and tests/data/digits: a small CNN on the UCI handwritten digits, in two versions.

Run from the repository root: python tools/models/digits.py
Takes about a minute on one core. Same seeds, same versions of the tools: the same bytes.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from archive import deterministic, save

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "digits"
DATA = ROOT / "tests" / "data" / "digits"
HELD_OUT = 360
SPLIT_SEED = 20240
# version -> (seed, epochs). The second one is trained from another start and for longer.
VERSIONS = {1: (1, 25), 2: (2, 40)}


class Digits(nn.Module):
    """[batch, 1, 8, 8] in 0..1 -> probabilities [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.hidden = nn.Linear(24 * 4 * 4, 40)
        self.out = nn.Linear(40, 10)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.out(torch.relu(self.hidden(x.flatten(1))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(x), dim=-1)


def train(images: torch.Tensor, labels: torch.Tensor, seed: int, epochs: int) -> Digits:
    deterministic(seed)
    model = Digits()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    batch = 64
    steps = epochs * ((len(images) + batch - 1) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            x = images[chosen]
            # A quarter of the batches are moved by a pixel, so that a digit need not be centred.
            if torch.rand(()) < 0.25:
                dy, dx = int(torch.randint(-1, 2, ())), int(torch.randint(-1, 2, ()))
                x = F.pad(x, (1, 1, 1, 1))[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]
            loss = F.cross_entropy(model.logits(x), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def main() -> None:
    digits = load_digits()
    pixels = digits.images.astype(np.uint8)  # [1797, 8, 8], 0..16
    labels = digits.target.astype(np.uint8)
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pixels))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]

    as_input = torch.from_numpy(pixels).float().div(16).unsqueeze(1)
    as_label = torch.from_numpy(labels).long()

    (DATA / "png").mkdir(parents=True, exist_ok=True)
    with open(DATA / "heldout.bin", "wb") as out:
        out.write(struct.pack("<I", HELD_OUT))
        for at in held:
            out.write(pixels[at].tobytes())
            out.write(bytes([labels[at]]))

    shown: set[int] = set()
    for place, at in enumerate(held):
        label = int(labels[at])
        if label not in shown:
            shown.add(label)
            grey = np.rint(pixels[at].astype(np.float64) * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).save(DATA / "png" / f"{label}-{place:04d}.png")

    for version, (seed, epochs) in VERSIONS.items():
        model = train(as_input[rest], as_label[rest], seed, epochs)
        path = MODEL / str(version) / "model.pt"
        save(torch.jit.script(model), path)
        with torch.no_grad():
            golden = torch.jit.load(str(path))(as_input[held])
        (DATA / f"golden-{version}.bin").write_bytes(golden.numpy().astype("<f4").tobytes())
        right = int((golden.argmax(1) == as_label[held]).sum())
        print(f"digits {version}: {right} of {HELD_OUT} held-out images right ({right / HELD_OUT:.1%}), "
              f"{path.stat().st_size} bytes")
        assert right / HELD_OUT >= 0.97, "below 97 %: not a model to ship"


if __name__ == "__main__":
    main()
