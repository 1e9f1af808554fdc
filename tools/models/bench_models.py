"""Makes the benchmark's models: random weights from a fixed seed, laid out as a model repository.

python tools/models/bench_models.py FOLDER

identity     [n, 64] -> the same
mlp          [n, 784] -> [n, 10], 784-256-10 with a ReLU
transformer  [n, 64, 256] -> the same shape, 4 encoder layers, 4 heads, 1024 wide inside
resnet18     [n, 3, 224, 224] -> [n, 1000]
cnn45        resnet18 in two versions of 45 MB, for measuring reloads

.canaries/ has archives that take what the transformer takes, to be rolled out beside it; its name keeps servers from
seeing it:

sound        the same weights but for rounding
throws       the same, and raises where x[0, 0] of an item is below -0.9: one in twenty of numbers evenly in [-1, 1)
slow         thrice as many layers
drifts       weights that are 0.3 % off
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from archive import deterministic, save


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 256)
        self.out = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(x)))


class EncoderLayer(nn.Module):
    """Pre-norm encoder layer (Vaswani et al. 2017; the norm first, as in GPT-2), without dropout."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.size(0), x.size(1), x.size(2)
        # [batch, length, 3 * width] -> three of [batch, heads, length, width / heads]
        q, k, v = (
            self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x + self.project(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(256, 4, 1024) for _ in range(layers)])
        self.norm = nn.LayerNorm(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Throws(nn.Module):
    """A transformer that raises for some inputs; not for the zeros and ones of a warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Transformer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 0, 0] < -0.9).any()):
            raise ValueError("x[0, 0] is below -0.9")
        return self.inner(x)


class Block(nn.Module):
    """Basic residual block (He et al. 2015)."""

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or planes_in != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(planes_in, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks = []
        planes_in = 64
        for planes, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
            blocks += [Block(planes_in, planes, stride), Block(planes, planes, 1)]
            planes_in = planes
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(self.stem(x)).mean([2, 3]))


def config(description: str, inputs: list[int], outputs: list[int], max_batch: int) -> str:
    def warm(batch: int) -> str:
        return f"{{ x = {[batch, *inputs]} }}"

    sizes = sorted({1, max_batch} | {size for size in (2, 4, 8, 16) if size < max_batch})
    return f"""description = "{description}"

[batching]
max_batch = {max_batch}

[[inputs]]
name = "x"
dtype = "FP32"
shape = {[-1, *inputs]}

[[outputs]]
name = "y"
dtype = "FP32"
shape = {[-1, *outputs]}

[warmup]
shapes = [{", ".join(warm(size) for size in sizes)}]
"""


# name -> (what makes it, input and output shape without the batch, largest batch, versions)
MODELS = {
    "identity": (Identity, [64], [64], 32, 1),
    "mlp": (Mlp, [784], [10], 32, 1),
    "transformer": (Transformer, [64, 256], [64, 256], 8, 1),
    "resnet18": (ResNet18, [3, 224, 224], [1000], 8, 1),
    "cnn45": (ResNet18, [3, 224, 224], [1000], 8, 2),
}


def off_by(part: float) -> Transformer:
    """The benchmark's transformer, each weight off by about that part of itself."""
    model = Transformer()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + part * torch.randn_like(weight))
    return model


# name -> (what makes it, the least and the largest difference of an answer from the transformer's)
CANARIES = {
    "sound": (lambda: off_by(1e-5), 0.0, 1e-3),
    "throws": (Throws, 0.0, 0.0),
    "slow": (lambda: Transformer(layers=12), 0.0, float("inf")),
    "drifts": (lambda: off_by(3e-3), 0.02, 1.0),
}


def canaries(root: Path) -> None:
    live = torch.jit.load(str(root / "transformer/1/model.pt"))
    for name, (make, least, most) in CANARIES.items():
        deterministic(101)
        model = make().eval()
        path = root / ".canaries" / name / "model.pt"
        save(torch.jit.script(model), path)

        loaded = torch.jit.load(str(path))
        with torch.no_grad():
            inputs = [torch.rand(1, 64, 256) * 2 - 1 for _ in range(20)]
            for x in inputs:
                x[:, 0, 0].abs_()
            differences = [float((loaded(x) - live(x)).abs().max()) for x in inputs]
            assert all(least <= difference <= most for difference in differences), f"{name}: {differences}"
        print(f"canary {name}: differs by {min(differences):.2g} to {max(differences):.2g}")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: bench_models.py FOLDER")
    root = Path(sys.argv[1])
    for name, (make, inputs, outputs, max_batch, versions) in MODELS.items():
        for version in range(1, versions + 1):
            deterministic(100 + version)
            model = make().eval()
            path = root / name / str(version) / "model.pt"
            save(torch.jit.script(model), path)

            loaded = torch.jit.load(str(path))
            with torch.no_grad():
                for batch in (1, 3):
                    x = torch.randn(batch, *inputs)
                    # The fused kernels that the interpreter may choose round differently.
                    torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-4)
                    assert list(loaded(x).shape) == [batch, *outputs]
            print(f"{name} {version}: {path.stat().st_size / 1e6:.1f} MB")
        (root / name / "model.toml").write_text(config(f"Benchmark: {name}, random weights", inputs, outputs, max_batch))
    canaries(root)


if __name__ == "__main__":
    main()
