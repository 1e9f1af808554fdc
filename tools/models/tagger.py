"""Makes models/tagger and tests/data/tagger: a scripted model with a loop, branches and several outputs.

Run from the repository root: python tools/models/tagger.py
Nothing is trained: the two tables below are the model, small enough to work an answer out by hand.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from archive import deterministic, save

ROOT = Path(__file__).resolve().parents[2]
TAGS = ["space", "word", "number", "punctuation", "quoted"]
SPACE, WORD, NUMBER, PUNCTUATION, QUOTED = range(5)


class Tagged(NamedTuple):
    tags: torch.Tensor  # INT64 [length]
    scores: torch.Tensor  # FP32 [length, 5]
    total: torch.Tensor  # FP32 []


def emission_table() -> torch.Tensor:
    """[256, 5]: what a byte speaks for by itself."""
    table = torch.zeros(256, 5)
    for byte in range(256):
        char = chr(byte)
        if byte >= 128 or char.isalpha() or char == "_":
            # Bytes from 128 on are parts of letters outside ASCII. A letter may go on a number: "3rd", "10km".
            table[byte, WORD], table[byte, NUMBER] = 2.0, 1.0
        elif char.isdigit():
            # A digit may go on a word: "gpt2".
            table[byte, NUMBER], table[byte, WORD] = 2.0, 1.5
        elif char.isspace() or byte < 32:
            table[byte, SPACE] = 3.0
        else:
            table[byte, PUNCTUATION] = 2.0
            if char in ".,":
                table[byte, NUMBER] = 1.0  # "3.14"
    return table


def transition_table() -> torch.Tensor:
    """[5, 5]: what the tag before speaks for."""
    table = torch.zeros(5, 5)
    table[WORD, WORD] = 1.0
    table[NUMBER, NUMBER] = 1.25
    return table


class Tagger(nn.Module):
    """tokens INT64 [length], weights FP32 [length] -> tags, scores, total. A length of 0 is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("emission", emission_table())
        self.register_buffer("transition", transition_table())

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> Tagged:
        length = tokens.size(0)
        if weights.size(0) != length:
            raise ValueError("weights must be as many as tokens")
        tags = torch.zeros([length], dtype=torch.int64)
        scores = torch.zeros([length, 5], dtype=torch.float32)
        total = torch.zeros([], dtype=torch.float32)
        previous = 0
        quoting = False
        for at in range(length):
            token = int(tokens[at])
            if token < 0 or token > 255:
                raise ValueError("a token is a byte: 0 to 255")
            step = self.emission[token] + self.transition[previous]
            if token == 34:
                # A quotation mark opens or closes; it is punctuation either way.
                quoting = not quoting
                tag = 3
            elif quoting:
                step[4] = step[4] + 10.0
                tag = int(step.argmax())
            else:
                tag = int(step.argmax())
            tags[at] = tag
            scores[at] = step
            total = total + weights[at] * step[tag]
            previous = tag
        return Tagged(tags, scores, total)


TEXTS = ["", "a", "3", "3rd", "pi is 3.14, gpt2 is not.", 'He said "go to 10 places" and left.', "naïve café 7"]


def main() -> None:
    deterministic(0)
    path = ROOT / "models" / "tagger" / "1" / "model.pt"
    save(torch.jit.script(Tagger().eval()), path)
    model = torch.jit.load(str(path))

    cases = []
    for text in TEXTS:
        data = text.encode()
        tokens = torch.tensor(list(data), dtype=torch.int64)
        # Quarters, so that sums are exact in FP32 in whatever order they are taken.
        weights = torch.tensor([(at % 4 + 1) / 4 for at in range(len(data))], dtype=torch.float32)
        with torch.no_grad():
            out = model(tokens, weights)
        cases.append({
            "text": text,
            "tokens": tokens.tolist(),
            "weights": weights.tolist(),
            "tags": out.tags.tolist(),
            "scores": out.scores.tolist(),
            "total": out.total.item(),
        })
        letters = "".join(" wnpq"[tag] for tag in out.tags.tolist())
        print(f"{text}\n{letters}  {out.total.item()}")

    golden = ROOT / "tests" / "data" / "tagger" / "golden.json"
    golden.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    golden.write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()
