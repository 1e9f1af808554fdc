"""In which lane a request was: as the server's own metrics count it."""

from server import within

# The parameter `priority` -> the lane.
LANES = {1: "CRITICAL", 2: "HIGH", 3: "NORMAL", 4: "LOW", 5: "LOW", 2**31: "LOW"}


def counted(server, model):
    """Requests of a model so far: (lane, outcome) -> count."""
    found = {}
    for key, value in server.metrics().items():
        name, _, labels = key.partition("{")
        if name == "torchlane_requests_total":
            labels = dict(each.split("=", 1) for each in labels.rstrip("}").split(","))
            if labels["model"].strip('"') == model:
                kind = (labels["lane"].strip('"'), labels["outcome"].strip('"'))
                found[kind] = found.get(kind, 0) + value
    return found


def lane_of(server, send, model="digits"):
    """The lane in which the one request that `send` makes was counted."""
    before = counted(server, model)
    send()

    def grown():
        now = counted(server, model)
        return [lane for (lane, outcome), value in now.items() if value > before.get((lane, outcome), 0)]

    (lane,) = within("the request is counted", grown)
    return lane
