"""What the wire tests in Python share: a torchlane on loopback, and how it is asked."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

# That of the tests; WIRE_SERVER names another, such as a release build for figures that count.
BINARY = pathlib.Path(os.environ.get("WIRE_SERVER") or os.environ.get("CARGO_TARGET_DIR", "target") + "/debug/torchlane")
PATIENCE = 30  # seconds until what should come counts as missing

work = pathlib.Path(tempfile.mkdtemp())
started = []  # processes, to be ended with the test


def within(what, probe, seconds=PATIENCE):
    """The first result of `probe` that is true."""
    until = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


def free_port():
    """One that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def get(url, **parameters):
    """The body of an answer by HTTP."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(url + query, timeout=10) as answer:
        return answer.read().decode()


def stubs():
    """torchlane's API, generated into the test's folder: messages and calls."""
    out = [f"--python_out={work}", f"--grpc_python_out={work}", "proto/torchlane/v1/model_server.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *out], check=True)
    sys.path.insert(0, str(work))
    from torchlane.v1 import model_server_pb2, model_server_pb2_grpc

    return model_server_pb2, model_server_pb2_grpc


class Server:
    """torchlane on a repository, and everything it says."""

    def __init__(self, repository, *settings, http="127.0.0.1:0"):
        self.log = work / "torchlane.log"
        command = [BINARY, "serve", "--repository", repository, "--log-format", "json"]
        command += ["--grpc-addr", "127.0.0.1:0", "--http-addr", http, "--set=log.access=all"]
        with open(self.log, "w") as log:
            command += [f"--set={each}" for each in settings]
            self.process = subprocess.Popen(command, stderr=log, env={"PATH": "/usr/bin:/bin"})
        started.append(self.process)
        within("ready", lambda: self.lines(message="ready") or self.process.poll() is not None)
        assert self.process.poll() is None, f"it does not start: {self.log.read_text()}"
        (listening,) = self.lines(message="listening")
        self.grpc, self.http = listening["grpc"], listening["http"]

    def lines(self, **fields):
        """Lines of the log with all of these fields."""
        # The last line may not be whole yet.
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if fields.items() <= line.items()]

    def metric(self, name):
        """A metric by its name with all labels; 0 if it is not there."""
        found = re.search(f"^{re.escape(name)} (\\S+)", get(f"http://{self.http}/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0

    def stop(self):
        """SIGTERM, and a good end."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        assert status == 0, f"status {status} after SIGTERM"


def run(main):
    """The test, and the end of all that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except BaseException:
        if (work / "torchlane.log").exists():
            print("not ok: the end of the log:", file=sys.stderr)
            print(*(work / "torchlane.log").read_text().splitlines()[-5:], sep="\n", file=sys.stderr)
        raise
    finally:
        for process in started:
            process.kill()
            process.wait()
        shutil.rmtree(work)
