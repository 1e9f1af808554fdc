"""Makes the archives beside it, with torch 2.13: `python make.py`, from this folder."""

import io
from typing import Dict, Final, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import nn
from torch.ao import quantization

torch.manual_seed(0)


class Out(NamedTuple):
    scores: torch.Tensor
    label: Optional[torch.Tensor]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.names = ["a", "b"]
        self.table = {"x": 1, "y": 2}
        self.scale = 2.5

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x))) * self.scale


class Net(nn.Module):
    size: Final[int]
    state: List[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.a = Block()
        self.b = Block()
        self.size = 3
        self.tied = nn.Parameter(torch.zeros(2, 2))
        self.tied_too = self.tied
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.layers[1].weight = self.layers[0].weight
        self.register_parameter("no_parameter", None)
        self.small = nn.Parameter(torch.zeros(2, dtype=torch.float16))
        self.brain = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("no_buffer", None)
        self.register_buffer("bytes", torch.zeros(4, dtype=torch.int8))
        self.register_buffer("mask", torch.zeros(4, dtype=torch.bool))
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4)[1:, ::2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.state = [torch.zeros(3)]
        self.cache = torch.jit.Attribute({"q": torch.ones(2)}, Dict[str, torch.Tensor])
        self.title = "hi"
        self.large = 2**40
        self.negative = -5
        self.mixed = (1, 2.0, "z")
        self.ints = [1, 300, 70000]
        self.device = torch.device("cpu")

    def forward(
        self,
        x: torch.Tensor,
        lengths: Optional[torch.Tensor] = None,
        n: int = 2,
        factor: float = 0.5,
        flag: bool = False,
        mode: str = "a,b)'\n\"",
        extra: Optional[Dict[str, torch.Tensor]] = None,
        window: Tuple[int, int] = (1, 2),
        device: Optional[torch.device] = None,
    ) -> Out:
        y = self.a(x)
        for i, layer in enumerate(self.layers):
            y = layer(y)
            if i == n:
                y.add_(1.0)
        y[0] = 3
        self.state.append(x)
        self.count += 1
        self.cache["z"] = x
        torch.add(x, x, out=y)
        while bool(y.sum() > 0):
            y = y - 1
        return Out(self.helper(y), lengths)

    def helper(self, x, k: int = 1):
        return x + k

    @torch.jit.export
    def reset(self, x: torch.Tensor, y: Dict[str, List[int]]) -> Tuple[torch.Tensor, Dict[str, List[int]]]:
        return x, y


class Either(nn.Module):
    def forward(self, x: Union[int, torch.Tensor]):
        return x


torch.jit.save(torch.jit.script(Net()), "net.pt", _extra_files={"info.txt": "hello", "a/b.json": "{}"})
torch.jit.save(torch.jit.freeze(torch.jit.script(Block()).eval()), "frozen.pt")
small = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.LSTM(8, 2)).eval()
torch.jit.save(torch.jit.trace(small, torch.zeros(1, 1, 4, 4)), "traced.pt")
torch.jit.save(torch.jit.script(Either()), "union.pt")
torch.save({"a": torch.ones(2)}, "state_dict.pt")
torch.save({"a": torch.ones(2)}, "legacy.pt", _use_new_zipfile_serialization=False)
torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), "exported.pt2")


def save(module, path):
    """Without debug records, which name this machine's files."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    reader, writer = torch._C.PyTorchFileReader(buffer), torch._C.PyTorchFileWriter(path)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.head(torch.relu(self.conv(self.into(x))).mean([2, 3])))


def dynamic(module):
    return quantization.quantize_dynamic(module.eval(), {nn.LSTM, nn.Linear}, dtype=torch.qint8)


torch.backends.quantized.engine = "fbgemm"
save(torch.jit.script(dynamic(nn.Sequential(nn.Linear(8, 4)))), "quantized_linear.pt")
save(torch.jit.trace(dynamic(Recurrent()), torch.rand(3, 1, 8)), "quantized_lstm.pt")
static = Convolution().eval()
static.qconfig = quantization.get_default_qconfig("fbgemm")
static = quantization.prepare(static)
static(torch.rand(1, 3, 8, 8))
save(torch.jit.script(quantization.convert(static)), "quantized_static.pt")
