"""A headless Chromium, steered by the DevTools protocol over two pipes: no port, and no package beside Python's own."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import time

# Longest wait for an answer of the browser, in seconds.
PATIENCE = 30


# The middle of an element that can be pressed, else null.
PRESSABLE = """async (selector) => {
  const node = document.querySelector(selector);
  if (!node || node.disabled) return null;
  node.scrollIntoView({ block: 'center', behavior: 'instant' });
  const middle = () => {
    const { x, y, width, height } = node.getBoundingClientRect();
    return [x + width / 2, y + height / 2];
  };
  const before = middle();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const [x, y] = middle();
  const isThere = x === before[0] && y === before[1] && node.contains(document.elementFromPoint(x, y));
  return isThere ? [x, y] : null;
}"""


class Browser:
    """Ends with its `with` block. `errors` is what pages have complained of so far."""

    def __init__(self, chromium: str, profile: str) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4: a shell puts them there, from numbers out of the way.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (commands, answers)]
        start = 'exec "$@" 3<&{0} 4>&{1} {0}<&- {1}>&-'.format(*theirs)
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--no-default-browser-check",
            "--no-proxy-server",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
        ]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        self._process = subprocess.Popen(
            ["bash", "-c", start, "bash", chromium, *flags, "about:blank"],
            pass_fds=theirs,
            env={**os.environ, "HOME": profile},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands, answers, *theirs):
            os.close(end)
        self._number = 0
        self._rest = b""
        self.errors: list[str] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **params: object) -> dict:
        """Sends a command and waits for its answer. What happens meanwhile is looked at for errors."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, deadline: float, method: str) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._read, 1 << 20) if ready else b""
            if not more:
                raise AssertionError(f"{method}: the browser {'is gone' if ready else 'does not answer'}")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")


class Page:
    """One tab."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **params: object) -> dict:
        return self._browser.call(method, self._session, **params)

    def look(self, width: int, height: int, scheme: str) -> None:
        """As on a screen of that size, with the reader's system light or dark."""
        mobile = width < 600
        scale = 2 if mobile else 1
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Goes there, and waits until all that the page itself names is loaded."""
        failed = self._call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> object:
        """What the expression is in the page; a promise is waited for."""
        told = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise AssertionError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, expression: str, seconds: float = 20) -> object:
        """Waits until the expression is true to JavaScript, and gives back what it is then."""
        deadline = time.monotonic() + seconds
        # In a list: an element comes as an empty dictionary, which is false to Python.
        while not (found := self.value(f"Promise.resolve({expression}).then((value) => (value ? [value] : []))")):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {expression}")
            time.sleep(0.05)
        return found[0]

    def click(self, selector: str) -> None:
        """Presses the middle of an element, as a hand would."""
        self.draw([self._middle(selector)])

    def _middle(self, selector: str) -> tuple[float, float]:
        """Once it stays where it is, can be used, and nothing lies over it."""
        return tuple(self.until(f"({PRESSABLE})({json.dumps(selector)})"))

    def box(self, selector: str) -> dict:
        """Where an element is, in pixels of the page."""
        return self.value(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")

    def draw(self, points: list[tuple[float, float]]) -> None:
        """Presses at the first point, moves to the others, lets go."""
        self._mouse("mouseMoved", points[0], held=False)
        self._mouse("mousePressed", points[0], held=True)
        for point in points[1:]:
            self._mouse("mouseMoved", point, held=True)
        self._mouse("mouseReleased", points[-1], held=False)

    def _mouse(self, kind: str, point: tuple[float, float], held: bool) -> None:
        x, y = point
        button = "none" if kind == "mouseMoved" and not held else "left"
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(held), clickCount=1)

    def press(self, key: str) -> None:
        """A key, on what has the focus."""
        codes = {"Escape": 27, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def nameless(self) -> list[str]:
        """The roles of what can be used and has no name to be read out."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        usable = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "spinbutton", "tab", "meter", "image", "dialog"}
        shown = [node for node in nodes if not node["ignored"]]
        of = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]
        return [role for role, name in of if role in usable and not name.strip()]

    def picture(self, path: str) -> None:
        """Writes what is seen to a PNG file."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
