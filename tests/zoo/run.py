"""Serves the zoo under load, and holds every answer against the one that PyTorch computed alone, to the last bit.

    python tests/zoo/run.py ZOO [SECONDS]

ZOO is what tests/zoo/models.py made. Twenty callers ask for random models with random priorities, one request in flight each; one
caller in ten sends what no model takes (wrong shapes, datatypes, names, values out of range), and a model is reloaded every
second. Each good request must be answered, and rightly. Needs a server (WIRE_SERVER) and the Python of scripts/tools.sh. The
seed is fixed; SECONDS is 600.
"""

import asyncio
import base64
import collections
import json
import pathlib
import random
import sys
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
from running import Server, run, stubs  # noqa: E402

CALLERS = 20
BAD_EVERY = 10
ANSWER_WITHIN = 30  # seconds; far above what any answer takes
LANES = ("CRITICAL", "HIGH", "NORMAL", "LOW")
STATUS = grpc.StatusCode
# What a bad request may be answered. Anything else is a fault, above all UNAVAILABLE and INTERNAL without a reason.
REFUSED = (STATUS.INVALID_ARGUMENT, STATUS.NOT_FOUND, STATUS.INTERNAL)


class Sums:
    def __init__(self):
        self.good = collections.Counter()
        self.bad = collections.Counter()
        self.wrong = []
        self.late = []
        self.counted = set()
        self.reloads = 0


def spoiled(pick, request, pb2):
    """The request with something wrong in it."""
    tensor = pick.choice(request.inputs)
    way = pick.randrange(6)
    if way == 0 and len(tensor.shape):
        tensor.shape[0] += 1
    elif way == 1:
        tensor.datatype = "FP64" if tensor.datatype != "FP64" else "INT8"
    elif way == 2:
        tensor.name = "no-such-input"
    elif way == 3:
        del request.inputs[:]
    elif way == 4:
        # Token ids and indices out of range; for numbers, NaN.
        tensor.raw = b"\xff" * len(tensor.raw)
    else:
        request.model = f"no-{request.model}"
    return way


def same(expected, answer):
    """Why the answer is not the expected one."""
    got = [(output.name, output.datatype, list(output.shape), output.raw) for output in answer.outputs]
    want = [(each["name"], each["datatype"], each["shape"], each["raw"]) for each in expected]
    if [each[:3] for each in got] != [each[:3] for each in want]:
        return f"{[each[:3] for each in got]} instead of {[each[:3] for each in want]}"
    different = [name for name, _, _, raw in got if raw != dict((w[0], w[3]) for w in want)[name]]
    return f"other bits in {different}" if different else None


async def caller(number, stub, pb2, zoo, sums, until):
    pick = random.Random(number)
    bad = number % BAD_EVERY == 0
    while time.monotonic() < until:
        model = pick.choice(list(zoo))
        asked = pick.choice(zoo[model])
        request = pb2.InferRequest(model=model, request_id=f"{number}", priority=pick.choice(LANES), inputs=[
            pb2.Tensor(**each) for each in asked["inputs"]
        ])
        if bad:
            way = spoiled(pick, request, pb2)
        began = time.monotonic()
        try:
            answer = await stub.Infer(request, timeout=ANSWER_WITHIN)
        except grpc.aio.AioRpcError as error:
            if not bad:
                sums.wrong.append(f"{model}: {error.code().name}: {error.details()}")
            elif error.code() in REFUSED:
                sums.bad[error.code().name] += 1
            else:
                sums.wrong.append(f"bad request of kind {way} for {model}: {error.code().name}: {error.details()}")
            continue
        sums.late.append(time.monotonic() - began)
        if bad:
            sums.bad["answered"] += 1  # NaN among numbers, another datatype that the model takes
            continue
        sums.good[model] += 1
        if model == "counter":
            # It is not reloaded: no count comes twice.
            (count,) = answer.outputs
            if count.raw in sums.counted:
                sums.wrong.append(f"counter: {int.from_bytes(count.raw, 'little')} twice")
            sums.counted.add(count.raw)
        elif why := same(asked["outputs"], answer):
            sums.wrong.append(f"{model}: {why}")


async def reloads(stub, pb2, zoo, sums, until):
    pick = random.Random("reloads")
    # A reload sets the counter back, so it is left alone.
    names = [name for name in zoo if name != "counter"]
    while time.monotonic() < until:
        model = pick.choice(names)
        await stub.ReloadModel(pb2.ReloadModelRequest(model=model), timeout=600)
        sums.reloads += 1
        await asyncio.sleep(1)


async def load(server, pb2, pb2_grpc, zoo, seconds):
    sums = Sums()
    until = time.monotonic() + seconds
    # A connection for each, as callers in different places have.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(server.grpc, options=options) for _ in range(CALLERS + 1)]
    work = [
        caller(number, pb2_grpc.ModelServerStub(channel), pb2, zoo, sums, until)
        for number, channel in enumerate(channels[1:])
    ]
    work.append(reloads(pb2_grpc.ModelServerStub(channels[0]), pb2, zoo, sums, until))
    await asyncio.gather(*work)
    for channel in channels:
        await channel.close()
    return sums


def main():
    made, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 600
    pb2, pb2_grpc = stubs()
    zoo = {}
    for path in sorted((made / "requests").glob("*.json")):
        zoo[path.stem] = json.loads(path.read_text())
        for request in zoo[path.stem]:
            for tensor in request["inputs"] + request["outputs"]:
                tensor["raw"] = base64.b64decode(tensor["raw"])
    server = Server(made / "models", "executors.intra_op_threads=1", "log.access=off")
    sums = asyncio.run(load(server, pb2, pb2_grpc, zoo, seconds))
    good, late = sum(sums.good.values()), sorted(sums.late)
    print(f"{good} good answers of {len(sums.good)} models, {sums.reloads} reloads, bad requests: {dict(sums.bad)}")
    print(f"p50 {late[len(late) // 2] * 1e3:.1f} ms, p99 {late[len(late) * 99 // 100] * 1e3:.1f} ms")
    for why, times in collections.Counter(sums.wrong).most_common(20):
        print(f"WRONG {times} times: {why[:300]}")
    assert set(sums.good) == set(zoo), f"never answered: {set(zoo) - set(sums.good)}"
    assert not sums.wrong, f"{len(sums.wrong)} of {good + len(sums.wrong)} answers are wrong or missing"
    server.stop()
    print("1 passed, 0 failed")


run(main)
