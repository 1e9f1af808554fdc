"""Makes tests/data/models: one tiny archive for each thing that a server must get right or refuse.

Run from the repository root: python tools/models/test_models.py
tests/data/models/README.md says what each one does; it is written from the docstrings here.
"""

import io
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from archive import deterministic, save

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "models"


class Identity(nn.Module):
    """`x` -> the same tensor, of any dtype and shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class AddTwo(nn.Module):
    """`a`, `b` -> a + b."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class TupleIo(nn.Module):
    """`pair`: (a, b) -> (a + b, a - b)."""

    def forward(self, pair: Tuple[torch.Tensor, torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        a, b = pair
        return a + b, a - b


class ListIo(nn.Module):
    """`xs`: a list of any length -> each one times its place, counted from 1."""

    def forward(self, xs: List[torch.Tensor]) -> List[torch.Tensor]:
        out: List[torch.Tensor] = []
        for place in range(len(xs)):
            out.append(xs[place] * (place + 1))
        return out


class DictIo(nn.Module):
    """`features`: a dict with `left` and `right` -> a dict with `sum` and `difference`."""

    def forward(self, features: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        left, right = features["left"], features["right"]
        return {"sum": left + right, "difference": left - right}


class OptionalIo(nn.Module):
    """`x`, optional `bias` -> (x, nothing), or with a bias (x + bias, bias)."""

    def forward(
        self, x: torch.Tensor, bias: Optional[torch.Tensor] = None
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        if bias is None:
            return x, None
        return x + bias, bias


class Extent(NamedTuple):
    smallest: torch.Tensor
    largest: torch.Tensor


class NamedOut(nn.Module):
    """`x` -> a named tuple `smallest`, `largest`, both of shape []."""

    def forward(self, x: torch.Tensor) -> Extent:
        return Extent(x.min(), x.max())


class ScalarArgs(nn.Module):
    """`x`, `scale` (float), `n` (int, default 2), `flag` (bool, default False) -> x * scale * n, negated with the flag."""

    def forward(self, x: torch.Tensor, scale: float, n: int = 2, flag: bool = False) -> torch.Tensor:
        y = x * scale * n
        return -y if flag else y


class Throws(nn.Module):
    """`x` -> x; where x[0] is negative it raises with a message of 4 MB that begins `refused:`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.flatten()[0] < 0):
            filling = "0123456789abcdef"
            for _ in range(18):
                filling = filling + filling
            raise RuntimeError("refused: " + filling)
        return x


class Stateful(nn.Module):
    """`x` -> how often it was called, INT64 []. Keeps the count in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros([], dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls.clone()


class InPlace(nn.Module):
    """`x` -> x + 1, written into the input itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class ReturnsBuffer(nn.Module):
    """`x` -> the module's own buffer [0, 1, 2, 3], not a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table


class Nan(nn.Module):
    """`x` -> NaN everywhere: what a broken set of weights answers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan")


class Remainder(nn.Module):
    """`x`, `y` -> x times what is left of the rows of x by those of y. Without rows in y it ends the process."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * (x.size(0) % y.size(0))


class Slow(nn.Module):
    """`x` -> x, after some tens of milliseconds; the buffer `iterations` says how many products of matrices it takes."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.register_buffer("iterations", torch.tensor(iterations))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.full([128, 128], 1.0 / 128.0)
        for _ in range(int(self.iterations)):
            work = work @ work
        return x + 0.0 * work[0, 0]


class Nested(nn.Module):
    """`groups`: a dict of lists -> (the sum of all, a dict of each list's own sum)."""

    def forward(self, groups: Dict[str, List[torch.Tensor]]) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        total = torch.zeros([])
        each: Dict[str, torch.Tensor] = {}
        for name, members in groups.items():
            mine = torch.zeros([])
            for member in members:
                mine = mine + member.sum()
            each[name] = mine
            total = total + mine
        return total, each


class Embedding(nn.Module):
    """`ids` INT64 [batch, length], 0..31 -> FP32 [batch, 8], each row its ids' mean. An id outside throws."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).mean(1)


class BatchFixed(nn.Module):
    """`x` [batch, ...] -> [...], summed over the batch: must not be batched with others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


class BatchNorm(nn.Module):
    """`x` [batch, 4] -> [batch, 4] through a BatchNorm, whose running statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
            self.norm.bias.copy_(torch.tensor([0.5, 0.0, -0.5, 1.0]))
            self.norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
            self.norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Halves(nn.Module):
    """`x` [batch, 4] in the parameters' own dtype -> [batch, 2] in it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Times(nn.Module):
    """`x` -> x times a constant: 1 in version 1, 2 in version 2."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class OtherShape(nn.Module):
    """`x` [batch, 8] -> [batch, 3]: the signature of no version of `two_versions`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class RejectsOnes(nn.Module):
    """`x` -> x; throws where x is all zeros or ones, which is what a warm-up is likely to send."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 0).all()) or bool((x == 1).all()):
            raise ValueError("nothing but zeros or ones")
        return x


class DtypeOut(nn.Module):
    """`x` -> a tuple of x as BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, in this order."""

    def forward(self, x: torch.Tensor) -> Tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor,
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor,
    ]:  # fmt: skip
        return (
            x.to(torch.bool), x.to(torch.uint8), x.to(torch.int8), x.to(torch.int16), x.to(torch.int32),
            x.to(torch.int64), x.to(torch.float16), x.to(torch.bfloat16), x.to(torch.float32), x.to(torch.float64),
        )  # fmt: skip


class Strided(nn.Module):
    """`x` [rows, columns] -> its transpose, as a view: not contiguous in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.t()


class Complex(nn.Module):
    """`x` -> COMPLEX64, a dtype with no wire form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x, x)


class ReturnsNumber(nn.Module):
    """`x` -> the number of its elements as an int, not a tensor."""

    def forward(self, x: torch.Tensor) -> int:
        return x.numel()


class ReturnsNothing(nn.Module):
    """`x` -> None."""

    def forward(self, x: torch.Tensor) -> None:
        return None


class NoArguments(nn.Module):
    """Nothing -> [3.5]."""

    def forward(self) -> torch.Tensor:
        return torch.tensor([3.5])


class NoForward(nn.Module):
    """A module with a method `other` and no `forward`."""

    @torch.jit.export
    def other(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ReadsFile(nn.Module):
    """`x` -> x plus the first byte of `Cargo.toml`, as it lies where the process runs: what no model should do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("Cargo.toml", False, 1, dtype=torch.uint8)


class Mlp(nn.Module):
    """`x` [batch, 4] -> [batch, 3], two layers; traced, so that its argument's name is the trace's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Keeps(nn.Module):
    """`x` [1] -> the same, through a buffer that it is copied into: two calls at once would mix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("b", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.b.copy_(x)
        return self.b * 1.0


class Voice(nn.Module):
    """`x` [1, 4], a frame of sound -> [1, 2], after all frames before it: its recurrent state is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 2)
        self._state = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._state.numel() == 0:
            self._state = torch.zeros(1, 2)
        self._state = self.cell(x, self._state)
        return self._state


class Gathers(nn.Module):
    """`x` [batch, 2] -> [batch, 6]: x, 2x and 3x, gathered in a list and a dict that each call makes for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        named: Dict[str, torch.Tensor] = {}
        for i in range(1, 4):
            y = x.clone()
            y.mul_(i)
            parts.append(y)
            named[str(i)] = y
        named["3"] += 0.0 * self.norm(x)
        return torch.cat(parts, 1)


class Trains(nn.Sequential):
    """`x` [batch, 2] -> [batch, 2], half of it dropped at random: traced in training mode."""


def made() -> Dict[str, nn.Module]:
    return {
        "identity": Identity(),
        "add_two": AddTwo(),
        "tuple_io": TupleIo(),
        "list_io": ListIo(),
        "dict_io": DictIo(),
        "optional_io": OptionalIo(),
        "named_out": NamedOut(),
        "scalar_args": ScalarArgs(),
        "throws": Throws(),
        "stateful": Stateful(),
        "inplace": InPlace(),
        "returns_buffer": ReturnsBuffer(),
        "nan": Nan(),
        "remainder": Remainder(),
        "slow": Slow(1000),
        "nested": Nested(),
        "embedding": Embedding(),
        "batch_fixed": BatchFixed(),
        "bn": BatchNorm(),
        "bf16": Halves(torch.bfloat16),
        "half": Halves(torch.float16),
        "two_versions/1/model": Times(1.0),
        "two_versions/2/model": Times(2.0),
        "other_shape": OtherShape(),
        "rejects_ones": RejectsOnes(),
        "dtype_out": DtypeOut(),
        "strided": Strided(),
        "complex": Complex(),
        "returns_number": ReturnsNumber(),
        "returns_nothing": ReturnsNothing(),
        "no_arguments": NoArguments(),
        "no_forward": NoForward(),
        "reads_file": ReadsFile(),
        "traced": Mlp(),
        "keeps": Keeps(),
        "voice": Voice(),
        "gathers": Gathers(),
        "trains": Trains(nn.Linear(2, 2), nn.Dropout(0.5)),
    }


BROKEN = {
    "truncated": "the first half of `traced.pt`.",
    "not_a_zip": "a line of text.",
    "empty": "no bytes at all.",
    "state_dict": "`torch.save` of a state dict: a zip, but no TorchScript.",
    "flipped_bit": "`traced.pt` with one bit of a weight flipped. The zip's checksum is wrong, but libtorch loads it: it checks none.",
}


def check() -> None:
    """Each archive does what its docstring says."""

    def load(name: str) -> torch.jit.ScriptModule:
        return torch.jit.load(str(OUT / f"{name}.pt"))

    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    for dtype in [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
                  torch.float16, torch.bfloat16, torch.float32, torch.float64]:  # fmt: skip
        assert load("identity")(torch.ones([2, 0, 3], dtype=dtype)).dtype == dtype
    assert load("add_two")(one, two).item() == 3
    assert [t.item() for t in load("tuple_io")((one, two))] == [3, -1]
    assert [t.item() for t in load("list_io")([one, two])] == [1, 4] and load("list_io")([]) == []
    assert load("dict_io")({"left": one, "right": two})["difference"].item() == -1
    assert load("optional_io")(one)[1] is None and load("optional_io")(one, two)[0].item() == 3
    assert load("named_out")(torch.tensor([3.0, 1.0])).smallest.item() == 1
    assert load("scalar_args")(two, 1.5).item() == 6 and load("scalar_args")(two, 1.5, 3, True).item() == -9
    assert load("throws")(one).item() == 1
    try:
        load("throws")(-one)
        raise AssertionError("throws.pt did not throw")
    except torch.jit.Error as error:
        assert "refused: 0123" in str(error) and len(str(error)) > 4_000_000
    stateful = load("stateful")
    assert [stateful(one).item(), stateful(one).item()] == [1, 2]
    assert load("inplace")(torch.tensor([1.0])).item() == 2
    assert load("returns_buffer")(one).tolist() == [0, 1, 2, 3]
    assert load("nan")(one).isnan().all()
    assert load("slow")(one).item() == 1
    total, each = load("nested")({"a": [one, two], "b": [two], "c": []})
    assert total.item() == 5 and {k: v.item() for k, v in each.items()} == {"a": 3, "b": 2, "c": 0}
    assert load("embedding")(torch.zeros([3, 5], dtype=torch.int64)).shape == (3, 8)
    try:
        load("embedding")(torch.full([1, 1], 32))
        raise AssertionError("embedding.pt took an id outside its table")
    except RuntimeError:
        pass
    assert load("batch_fixed")(torch.ones(3, 2)).tolist() == [3, 3]
    assert load("bn")(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).allclose(torch.tensor([[0.5, 0.0, -0.5, 1.0]]))
    assert load("bf16")(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert load("half")(torch.ones(1, 4, dtype=torch.float16)).dtype == torch.float16
    assert load("two_versions/1/model")(two).item() == 2 and load("two_versions/2/model")(two).item() == 4
    assert load("other_shape")(torch.ones(2, 8)).shape == (2, 3)
    assert [t.dtype for t in load("dtype_out")(one)][0] == torch.bool
    assert not load("strided")(torch.ones(2, 3)).is_contiguous()
    assert load("complex")(one).dtype == torch.complex64
    assert load("returns_number")(one) == 1 and load("returns_nothing")(one) is None
    assert load("no_arguments")().item() == 3.5
    assert not load("no_forward")._c._has_method("forward")
    assert load("reads_file")(torch.tensor([0])).item() == ord("[")
    assert load("traced")(torch.ones(7, 4)).shape == (7, 3)
    assert load("keeps")(two).item() == 2
    voice = load("voice")
    assert not voice(torch.ones(1, 4)).allclose(voice(torch.ones(1, 4)))
    assert load("gathers")(torch.ones(1, 2)).tolist() == [[1, 1, 2, 2, 3, 3]]
    assert "0.5, True" in getattr(load("trains"), "1").code
    load("flipped_bit")
    with zipfile.ZipFile(OUT / "flipped_bit.pt") as archive:
        assert archive.testzip() is not None
    for name in BROKEN.keys() - {"flipped_bit"}:
        try:
            load(name)
            raise AssertionError(f"{name}.pt loads")
        except (RuntimeError, ValueError):
            pass


def main() -> None:
    deterministic(7)
    lines = []
    for name, module in made().items():
        module.train(name == "trains")
        if name == "traced":
            script = torch.jit.trace(module, torch.zeros(2, 4))
        elif name == "trains":
            script = torch.jit.trace(module, torch.zeros(2, 2), check_trace=False)
        else:
            script = torch.jit.script(module)
        path = OUT / f"{name}.pt"
        save(script, path)
        lines.append(f"| `{name}.pt` | {' '.join((module.__doc__ or '').split())} |")

    whole = (OUT / "traced.pt").read_bytes()
    (OUT / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (OUT / "not_a_zip.pt").write_bytes(b"this is no archive\n")
    (OUT / "empty.pt").write_bytes(b"")
    buffer = io.BytesIO()
    torch.save(Mlp().state_dict(), buffer)
    (OUT / "state_dict.pt").write_bytes(buffer.getvalue())
    weight = torch.jit.load(str(OUT / "traced.pt")).state_dict()["layers.0.weight"].numpy().tobytes()
    at = whole.index(weight)
    at += 3  # the byte with the sign and most of the exponent
    (OUT / "flipped_bit.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    lines += [f"| `{name}.pt` | Broken: {what} |" for name, what in BROKEN.items()]

    check()
    (OUT / "README.md").write_text(
        "# Test models\n\nWritten by `tools/models/test_models.py`, which also checks each one.\n\n"
        "| file | what |\n|---|---|\n" + "\n".join(lines) + "\n"
    )
    size = sum(path.stat().st_size for path in OUT.rglob("*.pt"))
    print(f"{len(list(OUT.rglob('*.pt')))} test models, {size} bytes")


if __name__ == "__main__":
    main()
