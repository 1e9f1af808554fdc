"""Writes TorchScript archives that are the same bytes on every machine.

`torch.jit.save` also stores, for each operator, the path of the Python file it came from. Those paths differ
from machine to machine and are of no use to a server, so they are left out.
"""

import io
import os
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
