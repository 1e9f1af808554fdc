"""torchlane as its own process: on ports that the system chooses, with a model repository and settings of its own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = ROOT / (os.environ.get("WIRE_SERVER") or os.environ.get("CARGO_TARGET_DIR", "target") + "/debug/torchlane")
PATIENCE = 30  # seconds until what should come counts as missing
# Longest message. Small, so that what is too long is still quick to make; above 4 MiB, where plain gRPC clients stop reading.
MAX_MESSAGE_MIB = 8
MAX_MESSAGE_BYTES = MAX_MESSAGE_MIB * 1024 * 1024


def within(what, probe, seconds=PATIENCE):
    """The first result of `probe` that is true."""
    until = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.005)
    return found


class Server:
    """A running torchlane. `settings` are KEY=VALUE, as for --set."""

    def __init__(self, folder, repository, *settings, ready=True):
        self.log = folder / "log"
        command = [BINARY, "serve", "--repository", repository, "--log-format", "json"]
        command += ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]
        # Nothing changes by itself: models are loaded when a test asks for it, and then as fast as they can.
        always = ("log.access=off", "watch.interval=0s", "loader.patience=0s", f"server.max_message_bytes={MAX_MESSAGE_MIB}MiB")
        command += [f"--set={each}" for each in (*always, *settings)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stderr=log, env={"PATH": "/usr/bin:/bin"})
        try:
            (listening,) = self._logged("listening")
            self.grpc, self.http = listening["grpc"], listening["http"]
            if ready:
                self._logged("ready")
        except BaseException:
            self.process.kill()
            raise

    def _logged(self, message):
        lines = within(message, lambda: self.lines(message) or self.process.poll() is not None)
        assert lines is not True, f"the server does not start: {self.log.read_text()}"
        return lines

    def lines(self, message):
        """Lines of the log with that message."""
        # The last line may not be whole yet.
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if line.get("message") == message]

    def metrics(self):
        """Every series of /metrics with its value: `{'torchlane_requests_total{model="m",...}': 3.0}`."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(r"^([^#\s][^{\s]*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}

    def metric(self, name, **labels):
        """The sum of a metric's series that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        series = self.metrics().items()
        return sum(
            value
            for key, value in series
            if key.partition("{")[0] == name and all(re.search(rf"[{{,]{re.escape(each)}[,}}]", key) for each in wanted)
        )

    def is_alive(self):
        return self.process.poll() is None

    def stop(self):
        """As Kubernetes does it: SIGTERM, and a good end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert status == 0, f"status {status} after SIGTERM: {self.log.read_text()[-2000:]}"
