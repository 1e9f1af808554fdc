"""Asks a real Prometheus, which scrapes a real torchlane under a short load, what ops/ asks: every query, every rule.

An answer must come, and may be empty only where it is said why.

    dashboard.py PROMETHEUS_FOLDER

Needs a server (target/debug/torchlane, or WIRE_SERVER), the Python of scripts/tools.sh, and what scripts/prometheus.sh prints.
"""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import threading
import time

import grpc
import running
from running import Server, free_port, get, within, work

RULES = pathlib.Path("ops/prometheus/rules.yaml").resolve()
CASES = pathlib.Path("ops/prometheus/rules_test.yaml")
DASHBOARD = json.loads(pathlib.Path("ops/grafana/torchlane.json").read_text())

# What is rightly empty here: a part of the query, and why.
EMPTY = {
    "torchlane_store_downloaded_bytes_total": "the models do not come from an object store",
    "torchlane_store_fetches_total": "nor are they fetched from one",
    "torchlane_store_fetch_duration_seconds": "nor does that take time",
    "torchlane_response_cache_lookups_total": "the model asks for no response cache",
    "torchlane_response_cache_insertions_total": "so nothing is kept",
    "torchlane_response_cache_evictions_total": "and nothing goes",
    "torchlane_rollout_fallbacks_total": "the version that is rolled out fails no request",
    'torchlane_rollout_state{state="rolled_back"}': "nor is it rolled back",
}
# Grafana's own variables, as it would fill them in for a panel of an hour.
VARIABLES = {"$__rate_interval": "20s", "$instance": ".*", "$model": ".*"}
# Metrics in an expression, each with its labels.
SELECTOR = re.compile(r'(?<![\w:"])((?:up\b|(?:[a-z_]+:)?torchlane_[a-z0-9_:]+)(?:\{[^}]*\})?)')
LONGEST = 60  # seconds of load


def repository():
    """digits, of which the second version is rolled out and the third is broken."""
    digits = work / "models/digits"
    for version in ("1", "2"):
        (digits / version).mkdir(parents=True)
        shutil.copy(f"models/digits/{version}/model.pt", digits / version)
    shutil.copy("models/digits/model.toml", digits)
    (digits / "3").mkdir()
    (digits / "3/model.pt").write_bytes(b"not an archive")
    return work / "models"


class Load(threading.Thread):
    """A request each few milliseconds, of every lane, with and without a deadline, some of a tenant that sends too many."""

    def __init__(self, stub, pb):
        super().__init__(daemon=True)
        image = pb.Tensor(name="image", datatype="FP32", shape=[1, 1, 8, 8], raw=struct.pack("<64f", *[0.5] * 64))
        self.requests = [pb.InferRequest(model="digits", inputs=[image], priority=lane) for lane in (1, 2, 3, 4)]
        self.stub, self.answered, self.wrong, self.done = stub, 0, [], threading.Event()

    def run(self):
        for at in range(LONGEST * 100):
            if self.done.wait(0.01):
                return
            tenant = "greedy" if at % 10 == 0 else "patient"
            try:
                request, timeout = self.requests[at % 4], 5 if at % 3 else None
                self.stub.Infer(request, timeout=timeout, metadata=[("x-tenant", tenant)])
                self.answered += 1
            except grpc.RpcError as error:
                if (tenant, error.code()) != ("greedy", grpc.StatusCode.RESOURCE_EXHAUSTED):
                    self.wrong.append(error)

    def end(self):
        self.done.set()
        self.join()
        assert self.answered > 0 and not self.wrong, self.wrong[:3]


class Prometheus:
    """On loopback; it scrapes, and reads the rules, each second."""

    def __init__(self, folder, target):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = work / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{RULES}']\n"
            "scrape_configs:\n"
            f"  - {{job_name: torchlane, static_configs: [{{targets: ['{target}']}}]}}\n"
        )
        command = [folder / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={work}/tsdb"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        command += ["--enable-feature=exemplar-storage"]
        self.log = work / "prometheus.log"
        with open(self.log, "w") as log:
            running.started.append(subprocess.Popen(command, stdout=log, stderr=log))
        within("Prometheus is ready", self.is_ready)

    def is_ready(self):
        try:
            return get(f"{self.url}/-/ready")
        except OSError:
            return None

    def rules(self):
        groups = json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def exemplars(self, query):
        answer = json.loads(get(f"{self.url}/api/v1/query_exemplars", query=query, start=0, end=time.time() + 60))
        return [one["labels"] for series in answer["data"] for one in series["exemplars"]]

    def ask(self, query):
        """The samples of an instant query. An error is the caller's."""
        answer = json.loads(get(f"{self.url}/api/v1/query", query=query))
        assert answer["status"] == "success", f"{query}: {answer}"
        return answer["data"]["result"]


def filled_in(query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, f"a variable that this test does not know: {query}"
    return query


def of_dashboard():
    """Its queries: where each stands, and what it asks."""
    queries = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            (series,) = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"]).groups()
            queries.append((f"variable {variable['name']}", series))
    return [(where, filled_in(query)) for where, query in queries]


def of_rules(rules):
    """What is recorded is asked as it is. An alert is rightly silent: it is asked for each metric that it looks at."""
    queries = [(rule["name"], rule["query"]) for rule in rules if rule["type"] == "recording"]
    for rule in (rule for rule in rules if rule["type"] == "alerting"):
        metrics = SELECTOR.findall(rule["query"])
        assert metrics, f"{rule['name']} looks at no metric of torchlane: {rule['query']}"
        queries += [(rule["name"], metric) for metric in metrics]
    return queries


def main():
    folder = pathlib.Path(sys.argv[1])
    promtool = folder / "promtool"
    subprocess.run([promtool, "check", "rules", RULES], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([promtool, "test", "rules", CASES], check=True, stdout=subprocess.DEVNULL)
    print("ok promtool: each rule can be read, and each case of an alert comes out as it should", flush=True)

    pb, rpc = running.stubs()
    settings = ["watch.interval=0s", "tenants.greedy.rate=1", "metrics.triton_names=true"]
    # Nobody takes the spans: exemplars are of the requests that are traced.
    settings += [f"telemetry.otlp_endpoint=http://127.0.0.1:{free_port()}", "telemetry.sample=1.0"]
    server = Server(repository(), *settings)
    stub = rpc.ModelServerStub(grpc.insecure_channel(server.grpc))
    stub.ReloadModel(pb.ReloadModelRequest(model="digits", version="1"), timeout=30)
    try:
        stub.ReloadModel(pb.ReloadModelRequest(model="digits", version="3"), timeout=30)
        raise AssertionError("what is no archive went live")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    load = Load(stub, pb)
    load.start()
    prometheus = Prometheus(folder, server.http)
    within("it has scraped", lambda: prometheus.ask('up{job="torchlane"} == 1'))
    shadow = pb.RolloutPlan(strategy=pb.SHADOW, percent=100)
    stub.SetRollout(pb.SetRolloutRequest(model="digits", version="2", plan=shadow), timeout=30)

    within("every rule is evaluated", lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()))
    rules = prometheus.rules()
    cases = CASES.read_text()
    for rule in rules:
        assert rule["health"] == "ok", rule
        assert rule["type"] == "recording" or f'- name: "{rule["name"]}: ' in cases, f"{rule['name']} has no case"
    queries = of_dashboard() + of_rules(rules)
    reasons = {query: reason for _, query in queries for part, reason in EMPTY.items() if part in query}
    missing = [(where, query) for where, query in queries if query not in reasons]

    def all_have_come():
        missing[:] = [(where, query) for where, query in missing if not prometheus.ask(query)]
        return not missing

    try:
        within("all metrics", all_have_come, LONGEST / 2)
    except AssertionError:
        lines = "\n".join(f"  {where}: {query}" for where, query in missing)
        raise AssertionError(f"empty, and nothing says why:\n{lines}") from None
    for query in reasons:
        assert not prometheus.ask(query), f"said to be empty, and is not: {query}"
    for part in EMPTY:
        assert any(part in query for query in reasons), f"nobody asks for {part}"
    assert prometheus.ask('nv_inference_count{model="digits",version="1"} > 0'), "Triton's names"
    traced = within("exemplars", lambda: prometheus.exemplars("torchlane_request_duration_seconds_bucket"))
    assert all(re.fullmatch("[0-9a-f]{32}", labels["trace_id"]) for labels in traced), traced[:3]
    load.end()
    firing = [alert["metric"] for alert in prometheus.ask('ALERTS{alertstate="firing"}')]
    print(f"ok {len(queries)} queries of the dashboard and the rules, {len(reasons)} of them rightly empty", flush=True)
    # A version that did not load is what one is told of.
    assert {alert["alertname"] for alert in firing} == {"TorchlaneReloadFailed"}, firing
    print("ok the one alert that fires is that a version did not load", flush=True)
    server.stop()
    print("3 passed, 0 failed")


running.run(main)
