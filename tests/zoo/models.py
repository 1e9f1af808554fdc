"""Makes the zoo: a repository of some forty small models of the kinds that people serve, requests for each, and the answer to
each request as PyTorch computes it alone, in one thread.

    python tests/zoo/models.py OUT

OUT/models is the repository, OUT/requests/NAME.json what tests/zoo/run.py sends. Most models are bare files, as a person
drops them there. Those with a model.toml that asks for batches compute with small whole numbers, so that no order of
additions changes a bit. Weights are random, from a fixed seed.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUT = Path(sys.argv[1])
REQUESTS = 12  # of each model, all different
DATATYPES = {
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}

# Convolutions and the usual heads.


class ConvNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, groups=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(16, 10),
        )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, norm in zip(self.blocks, self.norms):
            x = F.relu(norm(block(x)) + x)
        return self.head(x.mean([2, 3]))


class Dense(nn.Module):
    """As torchvision's densenet: the code keeps a list of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4 * (i + 1), 4, 3, padding=1) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        a = F.gelu(self.down(x))
        b = self.up(F.silu(self.mid(F.max_pool2d(a, 2))))
        out: Dict[str, Tensor] = {}
        out["mask"] = self.out(torch.cat([a, b], 1))
        out["low"] = F.interpolate(out["mask"], scale_factor=0.5, mode="bilinear", align_corners=False)
        return out


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Detector(nn.Module):
    """Boxes over a threshold: the number of rows depends on the values."""

    def __init__(self):
        super().__init__()
        self.boxes = nn.Linear(8, 4)
        self.score = nn.Linear(8, 1)

    def forward(self, anchors: Tensor) -> Tuple[Tensor, Tensor]:
        scores = torch.sigmoid(self.score(anchors)).squeeze(1)
        keep = torch.nonzero(scores > 0.5).squeeze(1)
        order = torch.argsort(scores[keep], descending=True)
        return self.boxes(anchors)[keep][order], scores[keep][order]


# Sequences.


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        return self.encoder(self.embed(tokens), src_key_padding_mask=mask)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:
        return self.lstm(x)


class Gru(nn.Module):
    """The caller keeps the state and sends it."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(6, 8)

    def forward(self, x: Tensor, h: Tensor) -> Tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return h.sum(1), h


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 8, mode="sum")

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(ids, offsets)


class Greedy(nn.Module):
    """A loop whose length depends on the values."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.next = nn.Linear(8, 20)

    def forward(self, start: int, steps: int = 8) -> Tensor:
        token = torch.tensor([start])
        out: List[Tensor] = []
        for _ in range(steps):
            token = torch.argmax(self.next(self.embed(token)), 1)
            out.append(token)
            if int(token[0]) == 0:
                break
        return torch.cat(out)


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, 64, 16, window=self.window, return_complex=True)
        return torch.log1p(spectrum.abs())


class Conjugate(nn.Module):
    """libtorch keeps the minus as a flag on the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.imag(torch.conj(torch.complex(x, x)))


# Tables, graphs, numbers.


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(40, 8)
        self.item = nn.Embedding(60, 8)

    def forward(self, user: Tensor, items: Tensor) -> Tuple[Tensor, Tensor]:
        scores = torch.einsum("bd,bnd->bn", self.user(user), self.item(items))
        best = torch.topk(scores, 3, 1)
        return best.values, best.indices


class Factorization(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.randn(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.v).pow(2) - x.pow(2) @ self.v.pow(2)).sum(1)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        out = torch.zeros_like(nodes)
        out.index_add_(0, edges[1], self.lin(nodes)[edges[0]])
        return out


class Statistics(NamedTuple):
    smallest: Tensor
    median: Tensor
    largest: Tensor


class Quantiles(nn.Module):
    def forward(self, x: Tensor) -> Statistics:
        return Statistics(x.amin(1), x.median(1).values, x.amax(1))


class Solve(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        spd = a @ a.transpose(-1, -2) + 4 * torch.eye(a.size(-1))
        return torch.linalg.solve(spd, b)


class Trees(nn.Module):
    """A decision tree as tensors: whole numbers and comparisons."""

    def __init__(self):
        super().__init__()
        self.register_buffer("feature", torch.tensor([0, 1, 2]))
        self.register_buffer("threshold", torch.tensor([0.0, 0.5, -0.5]))
        self.register_buffer("leaf", torch.arange(8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        bits = x[:, self.feature] > self.threshold
        return self.leaf[(bits.to(torch.int64) * torch.tensor([1, 2, 4])).sum(1)]


class Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2)
        return F.fold(patches * 2.0, (8, 8), 2, stride=2)


class Half(nn.Module):
    def __init__(self, kind: torch.dtype):
        super().__init__()
        self.lin = nn.Linear(8, 4).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


class Pixels(nn.Module):
    """Bytes in, bytes out."""

    def forward(self, image: Tensor) -> Tensor:
        bright = image.to(torch.float32) * 1.25 + 3.0
        return bright.clamp(0, 255).to(torch.uint8)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.lin(x)
        return y.float()


# Edges of the calling convention.


class Defaults(nn.Module):
    def forward(self, x: Tensor, k: int = 2, scale: Optional[float] = 2.0, mask: Optional[Tensor] = None) -> Tensor:
        if scale is not None:
            x = x * scale
        if mask is not None:
            x = x.masked_fill(mask, 0.0)
        return x + k


class Lists(nn.Module):
    def forward(self, xs: List[Tensor]) -> List[Tensor]:
        return [x.cumsum(0) for x in xs]


class Dicts(nn.Module):
    def forward(self, features: Dict[str, Tensor]) -> Dict[str, Tensor]:
        return {"sum": features["left"] + features["right"], "product": features["left"] * features["right"]}


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, float, List[Tensor]]]:
        return x, (x.size(0), float(x.sum()), [x.t(), x[0]])


class Broadcast(nn.Module):
    """Views with strides of zero, and not contiguous."""

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return x[:, :1].expand(-1, 4), x.t()


class InPlace(nn.Module):
    """Writes into what it was sent."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        x[0] = 0.0
        return x.relu_()


class GradMode(nn.Module):
    """Leaves grad mode on behind it."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        return x * 3.0


# State.


class Scratch(nn.Module):
    """A buffer of its own that each pass fills anew: two passes at once would mix their callers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("b", torch.zeros(2048))

    def forward(self, x: Tensor) -> Tensor:
        self.b.copy_(x)
        total = self.b.sort()[0].cumsum(0)
        return self.b * 1.0 + total * 0.0


class Weight(nn.Module):
    """Normalises its own weight in place, each time to the same values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.clamp_(-0.5, 0.5)
        return F.linear(x, self.weight)


class Counter(nn.Module):
    """Counts its passes: no two answers may be the same."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.n.clone()


# Batches. Whole numbers: the same bits in every batch.


def whole(module: nn.Module) -> nn.Module:
    for value in module.parameters():
        value.data = torch.randint(-3, 4, value.shape).to(value.dtype)
    return module


class FixedSecond(nn.Module):
    """The second result has nothing to do with the batch."""

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return x * 2, torch.tensor([8.0, 16.0, 32.0])


class CentredOnTheBatch(nn.Module):
    """Rows are not independent: a batch of several callers would mix them."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.sum(0)


class RankInTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.argsort(x, 0)


class Rows(nn.Module):
    """One row more than it was sent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1] * 0])


def floats(*shape):
    return lambda: torch.randn(*shape)


def ints(high, *shape):
    return lambda: torch.randint(0, high, shape)


def wholes(*shape):
    return lambda: torch.randint(-4, 5, shape).float()


def batches(*shape):
    """Of one to three rows."""
    return lambda: torch.randint(-4, 5, (int(torch.randint(1, 4, ())), *shape)).float()


BATCHED = "[batching]\nmax_batch = 8\n"
PLAIN, SCRIPT, TRACE, FREEZE = "plain", "script", "trace", "freeze"

# Name: (module, how it is exported, its inputs, model.toml or none).
ZOO = {
    "convnet": (ConvNet, SCRIPT, {"input": floats(1, 3, 16, 16)}, None),
    "convnet-traced": (ConvNet, TRACE, {"input": floats(1, 3, 16, 16)}, None),
    "convnet-frozen": (ConvNet, FREEZE, {"input": floats(1, 3, 16, 16)}, None),
    "residual": (Residual, SCRIPT, {"x": floats(2, 3, 12, 12)}, None),
    "dense": (Dense, SCRIPT, {"x": floats(1, 4, 8, 8)}, None),
    "unet": (UNet, SCRIPT, {"x": floats(1, 1, 16, 16)}, None),
    "superres": (SuperResolution, TRACE, {"x": floats(1, 1, 12, 12)}, None),
    "detector": (Detector, SCRIPT, {"anchors": floats(40, 8)}, None),
    "encoder": (Encoder, SCRIPT, {"tokens": ints(50, 2, 9)}, None),
    "causal": (Causal, SCRIPT, {"x": floats(1, 2, 7, 16)}, None),
    "lstm": (Lstm, SCRIPT, {"x": floats(2, 5, 6)}, None),
    "gru": (Gru, SCRIPT, {"x": floats(2, 6), "h": floats(2, 8)}, None),
    "bag": (Bag, SCRIPT, {"ids": ints(30, 7), "offsets": lambda: torch.tensor([0, 2, 5])}, None),
    "greedy": (Greedy, SCRIPT, {"start": lambda: int(torch.randint(0, 20, ()))}, None),
    "spectrum": (Spectrum, SCRIPT, {"wave": floats(1, 640)}, None),
    "conjugate": (Conjugate, SCRIPT, {"x": floats(5)}, None),
    "two-towers": (TwoTowers, SCRIPT, {"user": ints(40, 2), "items": ints(60, 2, 6)}, None),
    "factorization": (Factorization, TRACE, {"x": floats(3, 10)}, None),
    "graph": (Graph, SCRIPT, {"nodes": floats(6, 4), "edges": ints(6, 2, 9)}, None),
    "quantiles": (Quantiles, SCRIPT, {"x": floats(3, 11)}, None),
    "solve": (Solve, SCRIPT, {"a": floats(4, 4), "b": floats(4, 2)}, None),
    "trees": (Trees, FREEZE, {"x": floats(5, 3)}, None),
    "fold": (Fold, SCRIPT, {"x": floats(1, 2, 8, 8)}, None),
    "half": (lambda: Half(torch.float16), SCRIPT, {"x": lambda: torch.randn(2, 8).half()}, None),
    "bfloat": (lambda: Half(torch.bfloat16), SCRIPT, {"x": lambda: torch.randn(2, 8).bfloat16()}, None),
    "pixels": (Pixels, TRACE, {"image": lambda: torch.randint(0, 256, (3, 8, 8)).to(torch.uint8)}, None),
    "autocast": (Autocast, SCRIPT, {"x": floats(2, 8)}, None),
    "defaults": (Defaults, SCRIPT, {"x": floats(4)}, None),
    "lists": (Lists, SCRIPT, {"xs": lambda: [torch.randn(3), torch.randn(2, 2)]}, None),
    "dicts": (Dicts, SCRIPT, {"features": lambda: {"left": torch.randn(3), "right": torch.randn(3)}}, None),
    "nested": (Nested, SCRIPT, {"x": floats(2, 3)}, None),
    "broadcast": (Broadcast, SCRIPT, {"x": floats(3, 2)}, None),
    "in-place": (InPlace, SCRIPT, {"x": floats(4, 5)}, None),
    "grad-mode": (GradMode, SCRIPT, {"x": floats(4)}, None),
    "scratch": (Scratch, SCRIPT, {"x": floats(2048)}, None),
    "weight": (Weight, SCRIPT, {"x": floats(2, 8)}, None),
    "counter": (Counter, SCRIPT, {"x": floats(1)}, None),
    "mlp-batched": (
        lambda: whole(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))),
        SCRIPT,
        {"input": batches(16)},
        BATCHED,
    ),
    "fixed-second": (FixedSecond, SCRIPT, {"x": batches(4)}, BATCHED),
    "centred": (CentredOnTheBatch, SCRIPT, {"x": batches(4)}, BATCHED),
    "ranked": (RankInTheBatch, SCRIPT, {"x": lambda: torch.randperm(6).view(2, 3).float()}, BATCHED),
    "rows": (Rows, SCRIPT, {"x": batches(4)}, BATCHED),
}


def flat(name: str, value) -> list[tuple[str, Tensor]]:
    """An argument as the wire has it: `xs.0`, `features.left`."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, int):
        return [(name, torch.tensor(value))]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [pair for key, item in items for pair in flat(f"{name}.{key}", item)]


def results(value, path: str = "") -> list[tuple[str, Tensor]]:
    """A result as torchlane names it."""
    own = path or "output_0"
    if value is None:
        return []
    if isinstance(value, (bool, int, float)):
        kind = torch.float64 if isinstance(value, float) else None
        return [(own, torch.tensor(value, dtype=kind))]
    if isinstance(value, Tensor):
        return [(own, value)]
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    else:
        names = value._fields if hasattr(value, "_fields") else range(len(value))
        pairs = [
            (f"{path}.{key}" if path else key if isinstance(key, str) else f"output_{key}", item)
            for key, item in zip(names, value)
        ]
    return [pair for key, item in pairs for pair in results(item, key)]


def written(name: str, tensor: Tensor) -> dict:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return {
        "name": name,
        "datatype": DATATYPES[plain.dtype],
        "shape": list(plain.shape),
        "raw": base64.b64encode(raw).decode(),
    }


def copied(value):
    """What a model may write into."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return value


def exported(module: nn.Module, how: str, inputs: dict):
    module = module.eval()
    if how == TRACE:
        return torch.jit.trace(module, tuple(make() for make in inputs.values()))
    script = torch.jit.script(module)
    return torch.jit.freeze(script) if how == FREEZE else script


def make(name: str, seed: int) -> None:
    build, how, inputs, toml = ZOO[name]
    torch.manual_seed(seed)
    module = build()
    with torch.no_grad():
        script = exported(module, how, inputs)
    if toml is None:
        path = OUT / "models" / f"{name}.pt"
    else:
        path = OUT / "models" / name / "1" / "model.pt"
        path.parent.mkdir(parents=True)
        (OUT / "models" / name / "model.toml").write_text(toml)
    torch.jit.save(script, str(path))
    archive = path.read_bytes()
    requests = []
    for _ in range(REQUESTS):
        arguments = {key: value() for key, value in inputs.items()}
        # Each answer is computed by a module that has seen nothing before.
        with torch.no_grad():
            answer = torch.jit.load(io.BytesIO(archive))(*copied(list(arguments.values())))
        torch.set_grad_enabled(False)
        sent = [pair for key, value in arguments.items() for pair in flat(key, value)]
        requests.append(
            {
                "inputs": [written(*pair) for pair in sent],
                "outputs": [] if name == "counter" else [written(*pair) for pair in results(answer)],
            }
        )
    (OUT / "requests" / f"{name}.json").write_text(json.dumps(requests))


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    (OUT / "models").mkdir(parents=True)
    (OUT / "requests").mkdir()
    for seed, name in enumerate(ZOO):
        make(name, seed)
    print(f"{len(ZOO)} models in {OUT / 'models'}")


main()
