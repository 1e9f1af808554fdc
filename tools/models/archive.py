"""Writes TorchScript archives, and samples for them, that are the same bytes on every machine.

`torch.jit.save` also stores, for each operator, the path of the Python file it came from. Those paths differ
from machine to machine and are of no use to a server, so they are left out.
"""

import io
import json
import os
import struct
import sys
from pathlib import Path

import torch

# The writer adds these itself.
_WRITTEN_BY_WRITER = {"version", "byteorder", ".data/serialization_id", ".format_version", ".storage_alignment"}


# TorchScript writes a class's constants in the order of a Python set, which hashing makes random.
if os.environ.get("PYTHONHASHSEED") != "0":
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})


def deterministic(seed: int) -> None:
    """One thread, one seed: the same weights in every run on the same kind of processor."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Writes `module` to `path` without debug records, and loads it again to see that it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)

    reader = torch._C.PyTorchFileReader(buffer)
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in sorted(reader.get_all_records()):
        if name.endswith(".debug_pkl") or name in _WRITTEN_BY_WRITER:
            continue
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    torch.jit.load(str(path))


def save_samples(samples: list[dict[str, torch.Tensor]], path: Path) -> None:
    """Writes `samples.safetensors`: each sample has its tensors as `input:NAME` and `output:NAME`.

    The format is simple enough not to need its library: a length, a header in JSON, the bytes.
    """
    names = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}
    header, data = {}, b""
    for number, sample in enumerate(samples):
        for name, tensor in sample.items():
            raw = tensor.numpy().tobytes()
            header[f"{number}/{name}"] = {
                "dtype": names[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
    # The tensors must begin at a multiple of 8 bytes.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
