"""Makes tests/data/boundary: models whose answers depend on what a server does around `forward`.

Run from the repository root: python tools/models/boundary_models.py
tests/data/boundary/README.md says what each one does; it is written from the docstrings here.
"""

import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional as F

from archive import deterministic, save

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "boundary"


class FixedOutput(nn.Module):
    """`x` [batch, ...] -> (x * 2, [8, 16, 32]): the second is the same for every request."""

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        return x * 2, torch.tensor([8.0, 16.0, 32.0])


class MinusMean(nn.Module):
    """`x` [batch, ...] -> x minus the mean over the batch: rows depend on each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class SortedRows(nn.Module):
    """`x` [batch, ...] -> x sorted over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=0)[0]


class Dropping(nn.Module):
    """`x` [batch, ...] -> x with half of its elements dropped, on purpose, in evaluation too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, True)


class GradOn(nn.Module):
    """`x` -> x. Turns gradients on for its thread and leaves them on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        return x


class SeesGrad(nn.Module):
    """`x` -> [1] where gradients are on when the pass begins, else [0]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0 if torch.is_grad_enabled() else 0.0])


class Defaults(nn.Module):
    """`x` and defaults of every kind -> x * scale * k + shift, negated unless `keep`, times `mask` where it is given."""

    def forward(
        self,
        x: torch.Tensor,
        scale: Optional[float] = 2.0,
        k: int = 3,
        mode: str = "plus",
        shift: float = -1.5,
        keep: bool = True,
        mask: Optional[torch.Tensor] = None,
        unread: Any = None,
    ) -> torch.Tensor:
        if scale is None:
            raise ValueError("scale is None")
        if mode != "plus":
            raise ValueError("mode is not its default")
        y = x * scale * k + shift
        if not keep:
            y = -y
        if mask is not None:
            y = y * mask
        return y


class Hooked(nn.Module):
    """`x` -> 10 x + 5 + 1000: a hook before forward multiplies by 10, one after it adds 1000."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 5


def before(self, input: Tuple[torch.Tensor]) -> Tuple[torch.Tensor]:
    return (input[0] * 10,)


def after(self, input: Tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return output + 1000


class Odd(nn.Module):
    """`x` [n], `kind` (int) -> a result that is not plain memory: see its code for the kinds."""

    def forward(self, x: torch.Tensor, kind: int) -> Any:
        out: Any = x
        if kind == 0:
            out = torch.imag(torch.conj(torch.complex(x, x)))
        if kind == 1:
            out = torch.complex(x, x)
        if kind == 2:
            out = x.to(torch.uint16)
        if kind == 3:
            out = x.to(torch.float8_e4m3fn)
        if kind == 4:
            out = x.to_sparse()
        if kind == 5:
            out = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
        if kind == 6:
            out = torch.empty([2], device=torch.device("meta"))
        if kind == 7:
            out = torch._nested_tensor_from_tensor_list([x, x])
        if kind == 8:
            out = x.unsqueeze(0).expand(3, -1)
        if kind == 9:
            out = x.flip(0).unsqueeze(1).t()[:, 0]
        if kind == 10:
            out = torch.zeros([0, 3])
        if kind == 11:
            out = x.sum()
        if kind == 12:
            out = [1, 2, 3]
        if kind == 13:
            out = "text"
        if kind == 14:
            out = [[x, x + 1], [x + 2]]
        if kind == 15:
            out = {"a": (x, 7), "b": (x, True)}
        if kind == 16:
            out = x.to_mkldnn()
        if kind == 17:
            out = torch.real(torch.conj(torch.complex(x, x)))
        if kind == 18:
            out = {"": x, "output_0": x + 1}
        if kind == 19:
            out = torch.jit.annotate(Dict[str, Any], {"a.b": x, "a": {"b": x + 1}})
        if kind >= 20:
            deep: List[Any] = [x]
            for _ in range(kind):
                outer: List[Any] = []
                outer.append(deep)
                deep = outer
            out = deep
        return out


class NamesDevice(nn.Module):
    """`x` -> x moved to a device that the code names, as a trace on a GPU does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros([1], device=torch.device("cuda:0"))


class Seeds(nn.Module):
    """`x` -> x. Sets the seed of the generator that all models share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return x


class Wide(nn.Module):
    """`x` [batch, n] -> [batch, 2] through a layer for that n."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Tokens(nn.Module):
    """`ids` [n], 0..7 -> [n]; keeps the last in a buffer. An id outside throws."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 1)
        self.register_buffer("last", torch.zeros([1]))
        self.seen = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.table(ids).flatten()
        self.seen += 1
        self.last = out[-1:]
        return out


class Speaks(nn.Module):
    """`x` -> x. Prints two lines and warns, with a line that looks like one of a server's log, each pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("first", x.size(0), "\nsecond \x1b[31m")
        warnings.warn("beware\n2030-01-01T00:00:00Z ERROR torchlane: all is lost")
        return x


def made() -> Dict[str, nn.Module]:
    hooked = Hooked()
    hooked.register_forward_pre_hook(before)
    hooked.register_forward_hook(after)
    return {
        "fixed_output": FixedOutput(),
        "minus_mean": MinusMean(),
        "sorted_rows": SortedRows(),
        "dropping": Dropping(),
        "grad_on": GradOn(),
        "sees_grad": SeesGrad(),
        "defaults": Defaults(),
        "hooked": hooked,
        "odd": Odd(),
        "names_device": NamesDevice(),
        "seeds": Seeds(),
        "wide/4": Wide(4),
        "wide/6": Wide(6),
        "tokens": Tokens(),
        "speaks": Speaks(),
    }


def check() -> None:
    def load(name: str) -> torch.jit.ScriptModule:
        return torch.jit.load(str(OUT / f"{name}.pt"))

    two = torch.tensor([2.0])
    assert load("defaults")(two).item() == 10.5
    assert load("defaults")(two, mask=two).item() == 21
    assert load("hooked")(two).item() == 1025
    assert load("odd")(two, 0).item() == -2 and load("odd")(two, 17).item() == 2
    assert load("sees_grad")(two).item() == 1


def main() -> None:
    deterministic(7)
    lines: List[str] = []
    for name, module in made().items():
        module.eval()
        save(torch.jit.script(module), OUT / f"{name}.pt")
        lines.append(f"| `{name}.pt` | {' '.join((module.__doc__ or '').split())} |")
    check()
    (OUT / "README.md").write_text(
        "# Models at the boundary\n\nWritten by `tools/models/boundary_models.py`, which also checks each one.\n\n"
        "| file | what |\n|---|---|\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
