"""Calls the ordinary operators with odd arguments, to find those that end the process, never end, or read memory that is not theirs.

    python fuzz.py [--seconds 480] [--calls 150] [--workers 2] [--seed 1] [OPERATOR ...]

Each overload in `[ordinary]` of operators.txt is called so many times. Every call has a seed of its own, so a finding can be
repeated: `--one aten::median.dim 17` prints the arguments and makes the call. Tensors end where a page without access
begins, on either side, so that reading one element too far ends the process. All calls are made by two processes whose
allocators fill memory with different bytes (MALLOC_PERTURB_): where the answers differ, the operator has read what it was
not given. Findings that docs/operators.md has no row for are printed, and the exit status is 1.
"""

import argparse
import ctypes
import hashlib
import mmap
import os
import pathlib
import random
import re
import resource
import select
import signal
import struct
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDINARY = ROOT / "crates/archive/src/safety/operators.txt"
PAGE = ROOT / "docs/operators.md"

# What they return is random, or memory as it was, by design.
UNSPECIFIED = re.compile(r"(new_)?empty.*|.*(rand|bernoulli|dropout|normal|uniform|exponential|geometric|cauchy|multinomial|poisson|binomial|rrelu).*|"
                         r"fractional_max.*|_get_tracing_state|Generator|prim::(Print|Uninitialized)|warn|randperm|_?prelu_kernel_rand")
# Whether all tensors are made by expand, so that one dimension has stride 0.
EXPANDED = "--expanded" in sys.argv
# Seconds after which a call counts as one that does not end.
PATIENCE = 6
WORDS = ["", "mean", "sum", "none", "trunc", "floor", "tanh", "gelss", "gelsy", "reflect", "constant", "linear", "reduced", "amax", "prod",
         "ij,jk->ik", "...i,i", "L", "a", "%s {} {}", "max", "ij", "xy"]
INTS = [0, 1, 2, 3, 4, 7, -1, -2, -7, 64, 100, -100, 2**31, 2**40, 2**63 - 1, -(2**63)]
SHAPES = [(), (0,), (1,), (3,), (5,), (2, 3), (3, 3), (4, 4), (0, 3), (3, 0), (1, 1), (2, 3, 4), (2, 2, 2), (1, 0, 2), (2, 4, 6), (1, 2, 4, 4),
          (2, 3, 5, 5), (1, 1, 1, 1), (2, 2, 6, 6), (1, 2, 3, 4, 5)]


class Guarded:
    """Memory whose last byte, or first one, is the last that may be read."""

    libc = ctypes.CDLL(None, use_errno=True)
    WALL = 1 << 20
    kept = []

    @classmethod
    def tensor(cls, torch, value, at_end):
        if value.numel() == 0:
            return value
        value = value.contiguous()
        size = value.numel() * value.element_size()
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + 2 * cls.WALL)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        start = base + cls.WALL + (room - size if at_end else 0)
        ctypes.memmove(start, value.data_ptr(), size)
        for wall in (base, base + cls.WALL + room):
            cls.libc.mprotect(ctypes.c_void_p(wall), cls.WALL, 0)
        raw = (ctypes.c_char * size).from_address(start)
        cls.kept.append((memory, raw))
        return torch.frombuffer(raw, dtype=value.dtype).view(value.shape)

    @classmethod
    def release(cls):
        for memory, raw in cls.kept:
            base = ctypes.addressof(raw)
            cls.libc.mprotect(ctypes.c_void_p(base // mmap.PAGESIZE * mmap.PAGESIZE), mmap.PAGESIZE, 3)
        cls.kept.clear()


def tensor(torch, rng, shape, dtype):
    """A tensor of about this shape: contiguous, transposed, expanded, or with gaps; of small, odd or extreme values."""
    kind = rng.random()
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if dtype == torch.bool:
        value = torch.randint(0, 2, shape, generator=generator).bool()
    elif dtype.is_floating_point or dtype.is_complex:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind < 0.3 and value.numel():
            odd = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e300, -1e9, 1e9, 0.5]
            value.view(-1)[rng.randrange(value.numel())] = rng.choice(odd)
        value = value.to(dtype)
    else:
        limits = torch.iinfo(dtype)
        value = torch.randint(0, 4, shape, generator=generator).to(dtype)
        if kind < 0.4 and value.numel():
            odd = [limits.min, limits.max, -1 if limits.min else 0, 0, 100, 1]
            value.view(-1)[rng.randrange(value.numel())] = rng.choice(odd)
        elif kind < 0.6:
            value = value - 2 if limits.min else value
    layout = rng.random() if not EXPANDED else 0.7
    at_end = rng.random() < 0.7
    if layout < 0.6:
        return Guarded.tensor(torch, value, at_end)
    if layout < 0.75 and value.dim():
        # A dimension of stride 0, as expand makes it.
        at = rng.randrange(value.dim())
        return Guarded.tensor(torch, value.narrow(at, 0, min(1, value.size(at))), at_end).expand(value.shape) if value.size(at) else value
    if layout < 0.9 and value.dim() > 1:
        return Guarded.tensor(torch, value.transpose(0, -1), at_end).transpose(0, -1)
    if value.dim():
        # Every other element of a larger one.
        wide = torch.stack([value, value], -1)
        return Guarded.tensor(torch, wide, at_end)[..., 0]
    return Guarded.tensor(torch, value, at_end)


class Arguments:
    """Arguments for one call of a schema, by a seed."""

    def __init__(self, torch, schema, seed):
        self.torch, self.rng = torch, random.Random(f"{schema.name}.{schema.overload_name}.{seed}")
        self.shape = self.rng.choice(SHAPES)
        self.dtype = self.rng.choice([torch.float32] * 6 + [torch.float64, torch.int64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16,
                                                            torch.bfloat16, torch.complex64])

    def of(self, argument, kind=None):
        rng, torch = self.rng, self.torch
        kind = kind or str(argument.type)
        if kind.startswith("Optional["):
            return None if rng.random() < 0.4 else self.of(argument, kind[9:-1])
        if argument.has_default_value() and rng.random() < 0.45:
            return argument.default_value
        if kind == "Tensor":
            shape = self.shape if rng.random() < 0.6 else rng.choice(SHAPES)
            dtype = self.dtype if rng.random() < 0.75 else rng.choice([torch.int64, torch.float32, torch.int32, torch.bool])
            if argument.name in ("index", "indices", "offsets", "lengths", "batch_sizes", "target", "labels", "repeats") and rng.random() < 0.8:
                dtype = torch.int64
            return tensor(torch, rng, shape, dtype)
        if kind.startswith("List["):
            return [self.of(argument, kind[5:-1]) for _ in range(argument.N if argument.N and rng.random() < 0.7 else rng.randrange(5))]
        if kind == "int":
            real = str(argument.real_type)
            if "ScalarType" in real:
                return rng.choice([torch.float32, torch.int64, torch.bool, torch.float64, torch.complex64, torch.float16, torch.uint8])
            if "Layout" in real:
                return torch.strided
            if "MemoryFormat" in real:
                return rng.choice([torch.contiguous_format, torch.preserve_format, torch.channels_last])
            return rng.choice(INTS[:9]) if rng.random() < 0.75 else rng.choice(INTS)
        if kind == "float":
            return rng.choice([0.0, 1.0, 0.5, -1.0, 2.5, 1e-5, 1e300, float("nan"), float("inf")])
        if kind in ("number", "Scalar"):
            return rng.choice([0, 1, 2, -1, 0.5, -2.5, float("nan"), 2**62, -(2**63), True, 1 + 2j])
        if kind == "complex":
            return rng.choice([0j, 1 + 2j])
        if kind == "bool":
            return rng.random() < 0.5
        if kind == "str":
            return rng.choice(WORDS)
        if kind == "Device":
            return torch.device("cpu")
        if kind.startswith("Dict["):
            return {"a": self.of(argument, kind.split(",", 1)[1][:-1].strip())}
        if kind == "Generator":
            return torch.Generator().manual_seed(1)
        raise NotImplementedError(kind)

    def call(self, schema):
        args, named = [], {}
        for argument in schema.arguments:
            value = self.of(argument)
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                args.append(value)
        return args, named


def overloads(torch, wanted):
    text = ORDINARY.read_text().split("\n[ordinary]\n")[1].split("\n[", 1)[0].split()
    names = {name if name.startswith("prim::") else f"aten::{name}" for name in text}
    if wanted:
        names = {name for name in names if name in wanted or name.split("::")[1] in wanted}
    found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name in names and not schema.overload_name.endswith("out")]
    return sorted(found, key=lambda schema: (schema.name, schema.overload_name))


def digest(torch, value, into):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        into.update(repr((value.dtype, tuple(value.shape))).encode())
        if value.is_sparse or value.is_quantized or value.is_nested or value.layout != torch.strided:
            return
        if value.dtype.is_floating_point or value.dtype.is_complex:
            value = torch.nan_to_num(torch.view_as_real(value.resolve_conj().to(torch.complex128)) if value.dtype.is_complex else value.double())
        into.update(bytes(value.contiguous().view(-1).view(torch.uint8).tolist()) if value.numel() else b"")
    elif isinstance(value, (list, tuple)):
        for item in value:
            digest(torch, item, into)
    else:
        into.update(repr(value).encode())


def one(torch, schema, seed):
    args, named = Arguments(torch, schema, seed).call(schema)
    namespace, name = schema.name.split("::")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
    return operator, args, named


def work(torch, todo, calls, first, pipe):
    """Makes the calls from `first` on; before each one it says which, and after each the digest of the answer."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + (3 << 30),) * 2)
    torch.set_num_threads(1)
    for number in range(first, len(todo) * calls):
        schema = todo[number // calls]
        os.write(pipe, struct.pack("<iq", number, 0))
        answer = hashlib.sha256()
        torch.manual_seed(1)
        signal.alarm(PATIENCE)
        try:
            operator, args, named = one(torch, schema, number % calls)
            with torch.no_grad():
                digest(torch, operator(*args, **named), answer)
        except (MemoryError, NotImplementedError, AttributeError):
            answer.update(b"error")
        except Exception:
            answer.update(b"error")
        signal.alarm(0)
        Guarded.release()
        os.write(pipe, struct.pack("<iq", number, struct.unpack("<q", answer.digest()[:8])[0] | 1))
    os._exit(0)


def show(torch, value):
    if isinstance(value, torch.Tensor):
        odd = "" if value.is_contiguous() else f" strides {list(value.stride())}"
        values = value.flatten()[:8].tolist() if value.numel() <= 8 else "..."
        return f"{str(value.dtype)[6:]}{list(value.shape)}{odd} {values}"
    if isinstance(value, list):
        return "[" + ", ".join(show(torch, item) for item in value) + "]"
    return repr(value)


class Worker:
    def __init__(self, torch, todo, calls, first, last):
        self.torch, self.todo, self.calls, self.next, self.last = torch, todo, calls, first, last
        self.digests, self.findings = {}, {}
        self.start()

    def start(self):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            work(self.torch, self.todo[: self.last], self.calls, self.next, writer)
        os.close(writer)
        self.pid, self.pipe, self.rest, self.at = pid, reader, b"", None

    def read(self):
        """Takes in what the child says; False once everything is done."""
        data = os.read(self.pipe, 1 << 16)
        self.rest += data
        while len(self.rest) >= 12:
            number, found = struct.unpack("<iq", self.rest[:12])
            self.rest = self.rest[12:]
            if found:
                self.digests[number] = found
            self.at = number
            self.next = number + 1
        if data:
            return True
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status) and self.at is not None:
            name = signal.Signals(os.WTERMSIG(status)).name
            self.findings[self.at] = "does not end" if name == "SIGALRM" else name
            # One call more of the same overload says nothing new after three.
            operator = self.at // self.calls
            if sum(at // self.calls == operator for at in self.findings) >= 3:
                self.next = (operator + 1) * self.calls
        if self.next >= self.last * self.calls:
            return False
        self.start()
        return True


def run(options, todo, torch):
    """All calls, by one process after another. Returns findings and digests by the number of the call."""
    share = -(-len(todo) // options.workers)
    workers = [Worker(torch, todo, options.calls, at * options.calls, min(at + share, len(todo))) for at in range(0, len(todo), share)]
    live, end = list(workers), time.monotonic() + options.seconds
    while live and time.monotonic() < end:
        for worker in list(live):
            if select.select([worker.pipe], [], [], 0.05)[0] and not worker.read():
                live.remove(worker)
    for worker in live:
        os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)
        print(f"# time is up at {todo[min(worker.next // options.calls, len(todo) - 1)].name}", file=sys.stderr)
    findings, digests = {}, {}
    for worker in workers:
        findings.update(worker.findings)
        digests.update(worker.digests)
    return findings, digests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--expanded", action="store_true", help="all tensors have a dimension of stride 0")
    parser.add_argument("--one", nargs=2, metavar=("OVERLOAD", "SEED"))
    parser.add_argument("--half", help=argparse.SUPPRESS)
    parser.add_argument("operators", nargs="*")
    options = parser.parse_args()
    if not options.one and not options.half:
        parent(options)
        return
    import torch

    todo = overloads(torch, options.operators)
    if options.one:
        for schema in overloads(torch, []):
            if f"{schema.name}.{schema.overload_name}".rstrip(".") == options.one[0]:
                operator, args, named = one(torch, schema, int(options.one[1]))
                print(schema, *(show(torch, value) for value in args), {name: show(torch, value) for name, value in named.items()}, sep="\n  ", flush=True)
                with torch.no_grad():
                    print(operator(*args, **named))
        return
    findings, digests = run(options, todo, torch)
    with open(options.half, "w") as out:
        for number, what in sorted(findings.items()):
            print("finding", number, what, file=out)
        for number, what in sorted(digests.items()):
            print("digest", number, what, file=out)


def parent(options):
    import subprocess
    import tempfile

    halves = []
    with tempfile.TemporaryDirectory() as folder:
        options.workers = max(1, options.workers // 2)
        flags = [f"--seconds={options.seconds}", f"--calls={options.calls}", f"--workers={options.workers}", *["--expanded"] * options.expanded, *options.operators]
        running = []
        for fill in ("85", "170"):
            environment = {**os.environ, "MALLOC_PERTURB_": fill, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen([sys.executable, "-W", "ignore", __file__, f"--half={folder}/{fill}", *flags], env=environment))
        if any([process.wait() for process in running]):
            sys.exit("the run itself failed")
        for fill in ("85", "170"):
            lines = [line.split(None, 2) for line in open(f"{folder}/{fill}").read().splitlines()]
            halves.append(({int(n): w for kind, n, w in lines if kind == "finding"}, {int(n): w for kind, n, w in lines if kind == "digest"}))
    import torch

    todo = overloads(torch, options.operators)
    found = {}
    for findings, _ in halves:
        for number, what in findings.items():
            found.setdefault((todo[number // options.calls], what), number % options.calls)
    for number in halves[0][1].keys() & halves[1][1].keys():
        schema = todo[number // options.calls]
        if halves[0][1][number] != halves[1][1][number] and not UNSPECIFIED.fullmatch(schema.name.removeprefix("aten::")):
            found.setdefault((schema, "reads memory"), number % options.calls)
    page = PAGE.read_text() if PAGE.exists() else ""
    known = set(re.findall(r"^\| `([\w:]+)`", page, re.M))
    new = 0
    print(f"# {len(todo)} overloads, {len(halves[0][1])} calls")
    for (schema, what), seed in sorted(found.items(), key=lambda item: (item[0][0].name, item[0][0].overload_name, item[0][1])):
        name = schema.name.removeprefix("aten::")
        overload = f"{schema.name}.{schema.overload_name}".rstrip(".")
        new += name not in known
        try:
            _, args, named = one(torch, schema, seed)
            shown = ", ".join([show(torch, value) for value in args] + [f"{key}={show(torch, value)}" for key, value in named.items()])
        except Exception as error:
            shown = str(error)
        print(f"{'known' if name in known else 'NEW'} | {overload} {seed} | {what} | {shown[:300]}")
    if new:
        sys.exit(f"{new} findings have no row in docs/operators.md: decide about each")


if __name__ == "__main__":
    main()
