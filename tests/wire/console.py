"""The console in a browser, against the real server under a short load.

usage: console.py CHROMIUM    (scripts/chromium.sh prints one)

Pictures of it go to the folder that SCREENSHOTS names, else nowhere that stays.
"""

import http.client
import json
import math
import os
import pathlib
import socket
import sys
import tempfile
import threading

import running
import zoo
from devtools import Browser, Page
from running import Server, work
from screens import SCREENS, everywhere

# Longest wait for a version to be loaded beside another, in seconds: loads run at idle priority, and the machine may be busy.
LOADED = 240
passed = 0


def ok(what: str) -> None:
    global passed
    passed += 1
    print(f"ok {what}", flush=True)


class Load(threading.Thread):
    """Requests for `digits` in two lanes, about forty a second, until it is stopped; for two minutes at most."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._ended = threading.Event()
        self.answered = 0
        self.refused = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
        body = json.dumps({"inputs": [image]})
        for number in range(4800):
            if self._ended.wait(0.025):
                break
            headers = {"content-type": "application/json", "x-priority": ("HIGH", "LOW")[number % 2], "x-tenant": "load"}
            connection.request("POST", "/v2/models/digits/infer", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                self.answered += 1
            else:
                self.refused += 1
        connection.close()

    def end(self) -> None:
        self._ended.set()
        self.join(20)


def ground(page: Page) -> str:
    return page.value("getComputedStyle(document.body).backgroundColor")


def numbers(page: Page) -> None:
    page.until("document.documentElement.hasAttribute('data-live')")
    assert page.value("document.querySelector('#status').textContent") == "ready"
    page.until("Number(document.querySelector('#request-rate').textContent) > 5")
    for lane in ("high", "low"):
        article = f"document.querySelector('[aria-labelledby=lane-{lane}]')"
        page.until(f"!{article}.querySelectorAll('.curve')[1].textContent.includes('–')")
        # A curve that goes up from nothing.
        page.until(f"{article}.querySelector('.line').getBBox().height > 1")
    assert page.value("document.querySelectorAll('#executors .bar').length") >= 2
    page.until("[...document.querySelectorAll('#executors .bar-number')].every((number) => number.textContent.includes('%'))")
    names = page.value("[...document.querySelectorAll('#models th a')].map((link) => link.textContent)")
    assert names == ["digits", "digits-decode", "digits-top", "read-digits", "tagger"], names
    page.until("Number(document.querySelector('#models tbody [data-label=\"requests/s\"]').textContent) > 5")
    identity = page.value("document.querySelector('#identity').textContent")
    assert socket.gethostname() in identity and "gRPC 127.0.0.1:" in identity, identity
    assert page.value("document.querySelector('#title').textContent") == "the test's own"
    assert page.value("document.title").startswith("the test's own")
    assert page.value("document.querySelector('#troubles').hidden"), "nothing is wrong"
    page.click("[data-span=hour]")
    page.until("document.querySelector('.axis-x').textContent.startsWith('60 min ago')")
    page.click("[data-span=minute]")
    page.until("document.querySelector('.axis-x').textContent.startsWith('60 s ago')")
    ok("the page shows which server it is and what it does")


def failures(page: Page, address: str) -> None:
    """Requests that fail are named by their reason, for the lane and for the model."""
    misfit = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [3], "data": [0, 0, 0]}]})
    for _ in range(3):
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("POST", "/v2/models/digits/infer", misfit, {"content-type": "application/json"})
        assert connection.getresponse().status == 400
        connection.close()
    page.until("document.querySelector('#models .reasons').textContent === '3 WRONG_SHAPE in the last hour'")
    page.until("document.querySelector('[aria-labelledby=lane-normal] .reasons').textContent.startsWith('3 WRONG_SHAPE')")
    ok("failures are shown by model, lane and reason")


def drawing(page: Page) -> None:
    page.click("#models th a")
    page.until("document.querySelector('#drawer').open")
    page.until("document.querySelector('#panel-overview').textContent.includes('image')")
    page.click("#tab-try")
    page.until("document.querySelector('#panel-try .field')")
    page.value("document.querySelector('#panel-try .field').scrollIntoView({block: 'center'})")
    box = page.box("#panel-try .field")
    turns = [2 * math.pi * step / 32 for step in range(33)]
    ring = [
        (box["x"] + box["width"] * (0.5 + 0.22 * math.sin(turn)), box["y"] + box["height"] * (0.5 - 0.34 * math.cos(turn)))
        for turn in turns
    ]
    page.draw(ring)
    page.until("document.querySelector('.answer[data-answered]')")
    page.until("document.querySelectorAll('.scores .bar').length === 10")
    # Each stroke is asked about, and the last of them is a whole ring.
    page.until("document.querySelector('.scores .bar[data-tone=strong] .bar-name')?.textContent === '0'")
    page.until("document.querySelector('.found strong').textContent === '0'")
    parts = page.value("[...document.querySelectorAll('.scores .track')].map((track) => Number(track.ariaValueNow))")
    assert 95 <= sum(parts) <= 105, parts
    timing = page.value("document.querySelector('.timing').textContent")
    assert "there and back" in timing and "pass" in timing, timing
    ok("a digit that is drawn is told at once")
    page.value("document.querySelector('.editor').value = '{'")
    page.click("#send")
    page.until("document.querySelector('.timing[data-tone=bad]')?.textContent.startsWith('The request is not JSON')")
    ok("a request that is none is refused in one line")


def changing(page: Page) -> None:
    generation = "fetch('/console/models/digits').then((answer) => answer.json()).then(({generation}) => generation)"
    before = page.value(generation)
    reload = "[data-change=reload]"
    page.click(reload)
    page.until("document.querySelector('#confirm').open")
    page.press("Escape")
    page.until("!document.querySelector('#confirm').open")
    assert page.value(generation) == before, "a change that was not confirmed"
    page.click(reload)
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.until("document.querySelector('#notice.shown')?.textContent.includes('version 2 is live')", LOADED)
    assert page.value(generation) > before
    page.click("#tab-history")
    page.until("document.querySelectorAll('#panel-history .change').length >= 2")
    page.until("document.querySelectorAll('#panel-history .timeline')[0]?.querySelectorAll('.segment').length >= 3")
    assert "console at 127.0.0.1" in page.value("document.querySelector('#panel-history').textContent")
    ok("a change is asked for, carried out, and in the history")


def tagging(page: Page, address: str) -> None:
    """A model of two inputs with different datatypes, and three outputs."""
    page.open(f"http://{address}/#/models/tagger/try")
    page.until("document.querySelector('.editor')?.value.includes('INT64')")
    asked = json.loads(page.value("document.querySelector('.editor').value"))
    tokens, weights = asked["inputs"]
    assert (tokens["name"], weights["name"], weights["datatype"]) == ("tokens", "weights", "FP32"), asked
    # "a 1", by its bytes.
    tokens.update(shape=[3], data=[97, 32, 49])
    weights.update(shape=[3], data="ones")
    page.value(f"document.querySelector('.editor').value = {json.dumps(json.dumps(asked))}")
    page.click("#send")
    page.until("document.querySelectorAll('.tensors details').length === 3")
    answer = page.value("[...document.querySelectorAll('.tensors details')].map((one) => one.textContent)")
    assert answer[0].startswith("tags INT64 [3]") and answer[0].endswith("1, 0, 2"), answer
    assert "scores, row 1 of 3" in page.value("document.querySelector('.found').textContent")
    assert page.value("document.querySelector('.found strong').textContent") == "word"
    ok("several inputs of other datatypes are sent, and several outputs shown")


def rolling(page: Page) -> None:
    """A version beside the live one, from the first request for it to its end."""
    page.press("Escape")
    page.until("!document.querySelector('#drawer').open")
    page.value("document.querySelector('#models th a').focus()")
    page.press("Enter")
    page.until("document.querySelector('#drawer-title').textContent === 'digits' && document.querySelector('#drawer').open")
    # A button that cannot be pressed says why.
    assert page.value("document.querySelector('[data-change=rollback]').disabled")
    assert page.value("document.querySelector('#drawer-why').textContent") == "Roll back: no other version was live before"
    page.click("[data-change=rollout]")
    page.until("document.querySelector('#confirm').open")
    assert page.value("[...new FormData(document.querySelector('#confirm-form'))].join(' ')") == "version,1 percent,10"
    page.click("#confirm-yes")
    page.until("document.querySelector('#notice.shown')?.textContent.includes('version 1 is rolled out beside 2')", LOADED)
    page.until("document.querySelector('#panel-overview .compare')?.textContent.includes('1 new')")
    page.click("[data-change=abort]")
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.until("document.querySelector('#notice.shown')?.textContent.includes('version 2 is live')")
    page.until("!document.querySelector('[data-change=rollout]').hidden && document.querySelector('[data-change=abort]').hidden")
    page.value("document.querySelector('#tab-overview').focus()")
    for key, tab in (("ArrowRight", "try"), ("End", "history"), ("ArrowRight", "overview"), ("ArrowLeft", "history")):
        page.press(key)
        page.until(f"document.activeElement.id === 'tab-{tab}' && !document.querySelector('#panel-{tab}').hidden")
    page.until("[...document.querySelectorAll('#panel-history .pill')].some((pill) => pill.textContent === 'rollout aborted')")
    page.press("Escape")
    page.until("!document.querySelector('#drawer').open && location.hash === ''")
    ok("a rollout is begun and ended, and all of it can be reached by keys")


def leaving(page: Page, server: Server) -> None:
    """The server goes away and comes back, and nobody loads the page anew."""
    server.stop()
    page.until("document.querySelector('#notice.shown')?.textContent.includes('cannot be reached')", 30)
    page.until("document.querySelector('#status').textContent === 'no answer' && document.title.startsWith('no answer')")
    ok("a server that is gone is told of")
    again = Server("models", http=server.http)
    page.until("document.querySelector('#status').textContent === 'ready' && document.title.endsWith(' · torchlane')", 30)
    page.until("!document.documentElement.hasAttribute('data-away') && !document.querySelector('#read-only').hidden")
    again.stop()
    ok("a server that comes back is shown as it is then")


def states(page: Page, pictures: pathlib.Path) -> None:
    """Models in every state, many of them, and a page that only reads."""
    repository = work / "zoo"
    zoo.build(repository, fleet=300)
    server = Server(repository, "backend=fake", "watch.interval=200ms", "watch.settle=0s")
    page.open(f"http://{server.http}/")
    page.until("document.documentElement?.hasAttribute('data-live')")
    zoo.version(repository, "canary", 2, "memory_bytes = 40960")
    page.until("document.querySelector('.brief:not([hidden])')?.textContent.includes('version 2 beside 1')", LOADED)
    names = "[...document.querySelectorAll('#models th a')].map((link) => link.textContent)"
    # A server with a model that does not load is not simply ready.
    page.until("document.querySelector('#status').textContent === '1 problem'")
    assert page.value("document.querySelector('#status').dataset.tone") == "bad"
    trouble = page.value("document.querySelector('#troubles-list').textContent")
    assert trouble.startswith("broken") and "no version serves" in trouble and "aten::not_there" in trouble, trouble
    # What wants a look stands first.
    assert page.value(names)[:3] == ["broken", "canary", "add"], page.value(names)
    assert "aten::not_there" in page.value("document.querySelector('#models .trouble').textContent")
    page.until("document.querySelector('#models-note').textContent === '1 failed · 300 on demand · 5 ready'")
    everywhere(page, "states", "document.documentElement", pictures)
    page.click("#models-more")
    page.until(f"{names}.length === 200 && document.querySelector('#models-empty').textContent.startsWith('106 more')")
    page.value("document.querySelector('#filter').focus()")
    page.value("document.execCommand('insertText', false, 'ventricle')")
    page.until(f"{names}.length === 1")
    for name, tab, what in (
        (zoo.LONG, "", "release-candidate"),
        ("broken", "/try", "No version is live"),
        ("fleet-007", "/try", "Load it now"),
        ("pair", "", "twice"),
        ("canary", "", "Evidence that it is bad"),
    ):
        page.value(f"location.hash = '#/models/{name}{tab}'")
        page.until(f"document.querySelector('#drawer-title').textContent === '{name}' && !document.querySelector('#drawer[data-waits]')")
        page.until(f"document.querySelector('.tab-panel:not([hidden])').textContent.includes('{what}')")
        assert page.value("document.querySelector('#drawer-actions').hidden"), "it only reads"
        everywhere(page, f"states-{name[:9]}", "document.querySelector('#drawer')", pictures)
    page.value("location.hash = '#/models/fleet-007/try'")
    page.click("#panel-try .primary")
    page.until("document.querySelector('.editor')")
    server.stop()
    ok("models are shown in each of their states, and hundreds of them")


def main() -> None:
    (chromium,) = sys.argv[1:]
    pictures = pathlib.Path(os.environ.get("SCREENSHOTS") or work / "screenshots")
    pictures.mkdir(parents=True, exist_ok=True)
    server = Server("models", "console.admin=true", "console.title=the test's own", "pressure.memory=0")
    load = Load(server.http)
    load.start()
    # The browser may still be writing to its folder when it is asked to go.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try:
        with folder as profile, Browser(chromium, profile) as browser:
            page = Page(browser)
            page.look(*SCREENS["wide"], "light")
            page.open(f"http://{server.http}/")
            numbers(page)
            failures(page, server.http)
            light = ground(page)
            everywhere(page, "overview", "document.documentElement", pictures)
            page.look(*SCREENS["wide"], "dark")
            assert ground(page) != light
            page.look(*SCREENS["wide"], "light")
            drawing(page)
            everywhere(page, "try", "document.querySelector('#drawer')", pictures)
            changing(page)
            everywhere(page, "history", "document.querySelector('#drawer')", pictures)
            page.click("#tab-overview")
            everywhere(page, "model", "document.querySelector('#drawer')", pictures)
            page.press("Escape")
            page.until("!document.querySelector('#drawer').open && location.hash === ''")
            load.end()
            assert load.answered > 20 and load.refused == 0, (load.answered, load.refused)
            tagging(page, server.http)
            rolling(page)
            # What was complained of before an answer is told before it.
            page.value("0")
            assert browser.errors == [], browser.errors
            leaving(page, server)
            browser.errors.clear()
            states(page, pictures)
            complaints = [error for error in browser.errors if "ERR_CONNECTION_REFUSED" not in error]
            assert complaints == [], complaints
            ok("nothing is wider than its screen, light or dark, at a desk or on a phone; the browser complains of nothing")
    finally:
        load.end()
    print(f"{passed} passed, 0 failed")


running.run(main)
