"""Breaks a change of a model in every way that it breaks at night, against the real server with libtorch.

Whatever is broken, the old version serves on, and the reason is in four places: the RPC's error, the log, the metric and the
event. Each case has a model of its own, a copy of digits whose version 1 is live, and a caller that asks the whole time: every
answer must come, and be version 1's to the last bit. Then a good version comes and goes live.

A case is a row of FAULTS, carried out in up to two ways, each with a server of its own:

- watched: the version is renamed into the repository, and the server finds it.
- asked: the server watches nothing, and the version is what ReloadModel is asked for. It loads only what is signed, and the
  version is: a signature under a broken file proves nothing but who broke it.

A writer that dies half-way is a case of its own (torn). A disk that is full is not here: tests/wire/store.sh has one under
the cache, tests/it/store.rs every step of a download on it.

Needs a server (target/debug/torchlane, or WIRE_SERVER), and the Python of scripts/tools.sh. Prints a line a case, with what an operator reads.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable

import grpc
from running import BINARY, PATIENCE, started, within, work

OLD = pathlib.Path("models/digits/1/model.pt")
GOOD = pathlib.Path("models/digits/2/model.pt")
TENSORS = {  # of digits, in the order of the archive's data/0, data/1, ...
    "conv1.weight": [12, 1, 3, 3],
    "conv1.bias": [12],
    "conv2.weight": [24, 12, 3, 3],
    "conv2.bias": [24],
    "hidden.weight": [40, 384],
    "hidden.bias": [40],
    "out.weight": [10, 40],
    "out.bias": [10],
}
TIME_LIMIT = "5s"  # far above what a load takes, also on a machine that is busy with other things
SETTLE = 0.5  # seconds

# What the caller asks for: a picture of which no two pixels are alike.
PICTURE = struct.pack("<64f", *(pixel / 64 for pixel in range(64)))


def torchlane(*args):
    done = subprocess.run([BINARY, *args], capture_output=True, text=True)
    assert done.returncode == 0, f"torchlane {args}: {done.stderr}"


# What a night does to a version. Each function fills its directory.


def good(version):
    shutil.copy(GOOD, version / "model.pt")


def truncated(version):
    (version / "model.pt").write_bytes(GOOD.read_bytes()[: GOOD.stat().st_size // 2])


def flipped(version):
    """One bit in the middle of the largest tensor."""
    data = bytearray(GOOD.read_bytes())
    with zipfile.ZipFile(GOOD) as archive:
        tensor = max((archive.read(entry) for entry in archive.infolist()), key=len)
    # Entries are stored as they are.
    data[data.index(tensor) + len(tensor) // 2] ^= 1
    (version / "model.pt").write_bytes(data)


def rewritten(line):
    """An archive whose forward begins with `line`."""

    def write(version):
        with zipfile.ZipFile(GOOD) as old, zipfile.ZipFile(version / "model.pt", "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename.endswith("code/__torch__.py"):
                    head = b"    x: Tensor) -> Tensor:\n"
                    assert data.count(head) == 2, "forward and logits take x"
                    data = data.replace(head, head + line.encode(), 1)
                new.writestr(zipfile.ZipInfo(entry.filename), data)

    return write


def weights(change):
    """The good version's weights alone, over the old version's archive, changed by `change(name, shape, data)`."""

    def write(version):
        header, body = {}, b""
        with zipfile.ZipFile(GOOD) as archive:
            (root,) = {name.split("/")[0] for name in archive.namelist()}
            for at, (name, shape) in enumerate(TENSORS.items()):
                shape, data = change(name, shape, archive.read(f"{root}/data/{at}"))
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
                body += data
        text = json.dumps(header).encode()
        (version / "weights.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)

    return write


def with_nan(name, shape, data):
    return shape, data[:-4] + struct.pack("<f", float("nan")) if name == "out.bias" else data


def with_a_row_more(name, shape, data):
    return ([11], data + data[:4]) if name == "out.bias" else (shape, data)


# The digest of the wrong file, as a slip gives it.
OLD_SHA256 = {"expected_sha256": hashlib.sha256(OLD.read_bytes()).hexdigest()}
BOTH = ("watched", "asked")


@dataclasses.dataclass
class Fault:
    """A way in which a version is broken, and what must be said of it."""

    name: str
    # Of google.rpc.ErrorInfo, and words of the message.
    reason: str
    says: str
    # Fills the version's directory.
    write: Callable[[pathlib.Path], None]
    # manifest.json is made "after" that (on the server that asks for it), "before" it (on both), or after it with a key that
    # is not trusted ("other key").
    seal: str = "after"
    # More fields of ReloadModelRequest.
    ask: dict = dataclasses.field(default_factory=dict)
    ways: tuple = BOTH


FAULTS = [
    Fault("truncated", "LOAD_FAILED", "truncated after", truncated),
    Fault("flipped-bit", "LOAD_FAILED", "checksum", flipped),
    Fault("flipped-bit-under-a-manifest", "DIGEST_MISMATCH", "sha256", flipped, seal="before"),
    Fault("not-what-is-asked-for", "DIGEST_MISMATCH", "was expected", good, ask=OLD_SHA256, ways=("asked",)),
    Fault("signed-by-another", "SIGNATURE_INVALID", "trusted", good, seal="other key", ways=("asked",)),
    Fault("nan-in-weights", "LOAD_FAILED", "NaN", weights(with_nan)),
    Fault("weights-of-another-shape", "LOAD_FAILED", "out.bias has [11], the archive [10]", weights(with_a_row_more)),
    Fault("forward-throws", "LOAD_FAILED", "out of film", rewritten('    ops.prim.RaiseException("out of film")\n')),
    # The last: what it leaves behind takes CPU time until its server ends.
    Fault(
        "forward-loops-for-ever",
        "LOAD_FAILED",
        f"did not end within {TIME_LIMIT}",
        rewritten("    again = True\n    while again:\n      x = torch.relu(x)\n"),
    ),
]


class Server:
    """torchlane on a repository of its own, with one model for each of `models`, and everything it says."""

    def __init__(self, name, models, *settings):
        self.name = name
        self.repository = work / name
        self.log = work / f"{name}.log"
        for model in models:
            (self.repository / model).mkdir(parents=True)
            shutil.copy("models/digits/model.toml", self.repository / model)
            self.place(model, "1", lambda version: shutil.copy(OLD, version / "model.pt"))
        command = [BINARY, "serve", "--repository", self.repository, "--log-format", "json"]
        command += ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]
        command += [f"--set={each}" for each in ("log.access=off", f"loader.time_limit={TIME_LIMIT}", *settings)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stderr=log, env={"PATH": "/usr/bin:/bin"})
        started.append(self.process)
        within("ready", lambda: self.lines(message="ready") or self.process.poll() is not None)
        assert self.process.poll() is None, f"{name} does not start: {self.log.read_text()}"
        (ready,) = self.lines(message="ready")
        assert ready["models"] == len(models), ready
        (listening,) = self.lines(message="listening")
        self.http = listening["http"]
        self.stub = rpc.ModelServerStub(grpc.insecure_channel(listening["grpc"]))
        self.events = []
        self.watch = self.stub.WatchModels(pb.WatchModelsRequest())
        threading.Thread(target=self.collect, daemon=True).start()
        within("the events begin", lambda: len(self.events) == len(models))

    def collect(self):
        try:
            for event in self.watch:
                self.events.append(event)
        except grpc.RpcError:
            pass  # the server has ended, or the test has

    def place(self, model, number, write, seal="after"):
        """A version, written aside and renamed into place."""
        aside = self.repository / model / f".{number}"
        aside.mkdir()
        if seal == "before":
            good(aside)
            self.sign(aside, model, number, seal)
        write(aside)
        # Where nothing has to be signed, only what is about manifests has one.
        if seal != "before" and self.name == "asked":
            self.sign(aside, model, number, seal)
        aside.rename(aside.with_name(number))

    def sign(self, version, model, number, seal):
        args = ["--model", model, "--version", number]
        args += ["--key", work / ("other.pem" if seal == "other key" else "release.pem")]
        if not (version / "model.pt").exists():
            args += ["--base", self.repository / model / "1/model.pt"]
        torchlane("sign", version, *args)

    def lines(self, **fields):
        """Lines of the log with all of these fields."""
        # The last line may not be whole yet.
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if fields.items() <= line.items()]

    def ended(self, model):
        """Events of changes that have ended."""
        return [e for e in list(self.events) if e.model.name == model and e.change in ("failed", "reloaded")]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            found = re.search(f"^{re.escape(name)} (.*)$", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0

    def failures(self, model):
        return self.metric(f'torchlane_reloads_total{{model="{model}",result="failed"}}')

    def stop(self):
        """As Kubernetes does it: SIGTERM, and a good end although a load may never end."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        assert status == 0, f"{self.name}: status {status} after SIGTERM"


class Caller(threading.Thread):
    """Asks one model the whole time, and keeps what came: versions in their order, each with its one answer."""

    def __init__(self, server, model):
        super().__init__(daemon=True)
        image = pb.Tensor(name="image", datatype="FP32", shape=[1, 1, 8, 8], raw=PICTURE)
        self.request = pb.InferRequest(model=model, inputs=[image])
        self.server, self.answers, self.by_version, self.wrong = server, 0, {}, []
        self.done = threading.Event()

    def __enter__(self):
        self.start()
        self.serves("1")
        return self

    def __exit__(self, failure, *_where):
        self.done.set()
        self.join()
        assert failure or not self.wrong, self.wrong[:3]

    def run(self):
        # A pause, because loader threads get what CPU time others leave.
        while not self.done.wait(0.002):
            try:
                answer = self.server.stub.Infer(self.request, timeout=PATIENCE)
            except grpc.RpcError as error:
                self.wrong.append(f"{error.code().name}: {error.details()}")
                continue
            raw = answer.outputs[0].raw
            if self.by_version.setdefault(answer.version, raw) != raw or [*self.by_version][-1] != answer.version:
                self.wrong.append(f"version {answer.version}: {raw.hex()}")
            self.answers += 1

    def serves(self, *versions):
        """More answers come; all so far were right, and of these versions, one after the other."""
        before = self.answers
        within("answers", lambda: self.answers >= before + 5 or self.wrong)
        assert not self.wrong, self.wrong[:3]
        assert tuple(self.by_version) == versions, f"answers of {[*self.by_version]}, not of {versions}"
        assert len(set(self.by_version.values())) == len(versions), "versions can be told apart"


def reason_of(error):
    """The `reason` of google.rpc.ErrorInfo, its first field."""
    (status,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    details = pb.Status.FromString(status).details
    (info,) = [detail.value for detail in details if detail.type_url.endswith("google.rpc.ErrorInfo")]
    return info[2 : 2 + info[1]].decode()


def refused(server, model, **fields):
    """The error of a ReloadModel that must fail."""
    try:
        answer = server.stub.ReloadModel(pb.ReloadModelRequest(model=model, **fields), timeout=PATIENCE)
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"{model}: it went live: {answer}")


def check_told(server, model, reason, says, asker, failures=1, error=None):
    """The change to version 2 has failed, the model's `failures`th: its event, its log line, the metric and the model's
    last_error say so in the same words, and so does the RPC's `error` where there was one."""
    event = within("an event", lambda: server.ended(model)[failures - 1 :])[0]
    told = (event.change, event.version, event.previous_version, event.model.live_version)
    assert told == ("failed", "2", "1", "1"), event
    assert event.reason == reason and says in event.error, event
    assert event.asker.startswith(asker), event.asker
    if error is not None:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert (reason_of(error), error.details()) == (reason, event.error), error
    fields = {"model": model, "change": "failed"}
    line = within("a log line", lambda: server.lines(**fields)[failures - 1 :])[0]
    # Callers are not shown where the repository is; the log has it.
    assert str(work) not in event.error, event
    message = line["message"].replace(f"{server.repository}/", "")
    told = (line["level"], line["reason"], message, line["version"], line["live"], line["asker"])
    assert told == ("ERROR", reason, event.error, 2, 1, event.asker), line
    assert server.failures(model) == failures, server.failures(model)
    now = server.stub.GetModel(pb.GetModelRequest(model=model))
    assert (now.live_version, now.last_error) == ("1", event.error), now


def went_live(server, model, version):
    """The change that ends next goes well."""
    event = within("it is live", lambda: server.ended(model)[int(server.failures(model)) :])[0]
    told = (event.change, event.version, event.model.live_version, event.model.last_error)
    assert told == ("reloaded", version, version, ""), event


def report(server, model, caller):
    failed = [event for event in server.ended(model) if event.change == "failed"][-1]
    print(f"ok {model}, {server.name}, {caller.answers} answers: {failed.reason}: {failed.error}", flush=True)


def broken(server, case):
    """A row of FAULTS."""
    model = case.name
    with Caller(server, model) as caller:
        server.place(model, "2", case.write, case.seal)
        if server.name == "asked":
            check_told(server, model, case.reason, case.says, "caller ", error=refused(server, model, **case.ask))
        else:
            check_told(server, model, case.reason, case.says, "repository")
        caller.serves("1")
        stuck = server.metric("torchlane_loader_threads_stuck")
        assert stuck == (1 if model == "forward-loops-for-ever" else 0), f"{stuck} threads are stuck"
        server.place(model, "3", good)
        if server.name == "asked":
            answer = server.stub.ReloadModel(pb.ReloadModelRequest(model=model), timeout=PATIENCE)
            assert (answer.previous_version, answer.live_version) == ("1", "3"), answer
        went_live(server, model, "3")
        caller.serves("1", "3")
        assert server.failures(model) == 1
        report(server, model, caller)


# Copies as `cp` does, but slowly: SOURCE TARGET, so many bytes at a time, so many seconds apart.
WRITER = """
import sys, time
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb", buffering=0) as target:
    while piece := source.read(int(sys.argv[3])):
        target.write(piece)
        time.sleep(float(sys.argv[4]))
"""


def torn(server):
    """A writer that copies a version in place, and is killed half-way; somebody is in a hurry meanwhile."""
    model, (version, size) = "torn", (server.repository / "torn/2", GOOD.stat().st_size)
    version.mkdir()
    archive = version / "model.pt"
    # Twice the time that files have to be quiet, in 40 steps.
    writer = [sys.executable, "-c", WRITER, GOOD, archive, str(size // 40), str(SETTLE / 20)]
    with Caller(server, model) as caller:
        writing = subprocess.Popen(writer)
        started.append(writing)
        within("half of it", lambda: archive.exists() and archive.stat().st_size > size // 2)
        # What is still being written is loaded by those alone who ask for it by name.
        error = refused(server, model, version="2")
        writing.send_signal(signal.SIGKILL)
        assert writing.wait() == -signal.SIGKILL, "it was killed while it wrote"
        assert archive.stat().st_size < size
        check_told(server, model, "LOAD_FAILED", "truncated after", "caller ", 1, error)
        caller.serves("1")
        check_told(server, model, "LOAD_FAILED", "truncated after", "repository", 2)
        caller.serves("1")
        subprocess.run(writer, check=True)
        went_live(server, model, "2")
        caller.serves("1", "2")
        assert server.failures(model) == 2, "what is still being written is not tried"
        report(server, model, caller)


def main():
    torchlane("sign", "--new-key", work / "release.pem")
    torchlane("sign", "--new-key", work / "other.pem")
    settings = {
        "watched": ["watch.interval=100ms", f"watch.settle={SETTLE}s"],
        "asked": ["watch.interval=0s", "integrity.policy=signed", f'integrity.trusted_keys=["{work}/release.pem.pub"]'],
    }
    passed = 0
    for way in BOTH:
        rows = [case for case in FAULTS if way in case.ways]
        cases = {case.name: functools.partial(broken, case=case) for case in rows}
        if way == "watched":
            cases = {"torn": torn, **cases}
        server = Server(way, cases, *settings[way])
        try:
            for case in cases.values():
                case(server)
            server.stop()
        except BaseException:
            print(f"not ok, {way}: the end of the log:", file=sys.stderr)
            print(*server.log.read_text().splitlines()[-5:], sep="\n", file=sys.stderr)
            raise
        print(f"ok {way}: SIGTERM ends it with status 0, although a load never ends", flush=True)
        passed += len(cases) + 1
    print(f"{passed} passed, 0 failed")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    stubs = [f"--python_out={work}", f"--grpc_python_out={work}", "proto/torchlane/v1/model_server.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *stubs], check=True)
    sys.path.insert(0, str(work))
    from torchlane.v1 import model_server_pb2 as pb, model_server_pb2_grpc as rpc

    main()
finally:
    for process in started:
        process.kill()
        process.wait()
    shutil.rmtree(work)
