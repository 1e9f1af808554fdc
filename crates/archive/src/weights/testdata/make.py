"""Makes the files beside it, with torch 2.13: `python make.py`, from this folder."""

import json
import struct
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.linear.weight
        self.small = nn.Parameter(torch.randn(2).to(torch.float16))
        self.brain = nn.Parameter(torch.randn(2).to(torch.bfloat16))
        self.register_buffer("mask", torch.rand(4) > 0.5)
        self.register_buffer("view", torch.randn(3, 4)[1:, ::2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("passing", torch.randn(2), persistent=False)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean(dim=(2, 3))
        return self.tied(self.linear(y)) * self.small.sum().float() + self.view.sum() + self.passing[0]


def made(seed):
    torch.manual_seed(seed)
    net = Net()
    net.norm.running_mean.copy_(torch.randn(3))
    net.norm.num_batches_tracked.fill_(seed)
    return net.eval()


def save_safetensors(tensors, path):
    """The format is simple enough not to need its library: a length, a header in JSON, the bytes."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Runs:
    """What a pickle could do to whoever runs it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit",))


old, new = made(1), made(2)
torch.jit.script(old).save(HERE / "old.pt")
scripted = torch.jit.script(new)
complete = scripted.state_dict()
torch.save(complete, HERE / "new.pth")
save_safetensors({name: tensor for name, tensor in complete.items() if name != "tied.weight"}, HERE / "new.safetensors")
torch.save({**dict(scripted.named_parameters()), **dict(scripted.named_buffers())}, HERE / "parameters.pth")

# The same archive, exported with the new weights.
twin = made(1)
for own, other in zip(twin.buffers(), new.buffers()):
    own.copy_(other)
with torch.no_grad():
    for own, other in zip(twin.parameters(), new.parameters()):
        own.copy_(other)
torch.jit.script(twin).save(HERE / "new.pt")

torch.save(new.state_dict(), HERE / "eager.pth")
torch.save({f"module.{name}": tensor for name, tensor in complete.items()}, HERE / "wrapped.pth")
torch.save({"state_dict": complete, "epoch": 3}, HERE / "checkpoint.pth")
torch.save({"weight": torch.zeros(1), "runs": Runs()}, HERE / "runs.pth")
torch.save([torch.zeros(1)], HERE / "list.pth")
torch.save({"a": torch.zeros(1).expand(1 << 40)}, HERE / "expanded.pth")
torch.save({"a": torch.zeros(1)}, HERE / "protocol5.pth", pickle_protocol=5)
torch.save({"a": torch.zeros(1)}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"a": torch.eye(2).to_sparse()}, HERE / "sparse.pth")
torch.jit.freeze(torch.jit.script(old)).save(HERE / "frozen.pt")
