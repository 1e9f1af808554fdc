"""The operators that archives name: what torchlane's scan sees. Needs no torch.

    python names.py WHAT 'PATTERN OF ARCHIVES' > corpus/WHAT.txt

for archives that were exported elsewhere; their names are `MODEL.WAY.pt`. `corpus.py` makes its own.
"""

import collections
import glob
import pathlib
import re
import sys
import zipfile

MENTION = re.compile(r"(?<![\w.])(?:torch\.(\w+)|ops\.(\w+)\.(\w+))")
TEXT = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")


def code(archive):
    """Name and text of each file of code in an open archive."""
    for name in archive.namelist():
        if "/code/" in name and name.endswith(".py"):
            yield name.split("/code/")[1], archive.read(name).decode()


def names(text):
    """Operators that a file of code mentions; `aten::` is left off."""
    for plain, namespace, operator in MENTION.findall(TEXT.sub('""', text)):
        yield f"{namespace}::{operator}" if namespace and namespace != "aten" else plain or operator


def main():
    what, pattern = sys.argv[1:3]
    users, archives = collections.defaultdict(set), 0
    for path in sorted(glob.glob(pattern)):
        with zipfile.ZipFile(path) as archive:
            archives += 1
            for name, text in code(archive):
                if len(sys.argv) > 3:
                    model, way = pathlib.Path(path).name.split(".")[:2]
                    file = pathlib.Path(sys.argv[3], what, model, way, name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text)
                for operator in names(text):
                    users[operator].add(pathlib.Path(path).name.split(".")[0])
    models = set().union(*users.values())
    print(f"# What exports of `{what}` call: {len(models)} models, {archives} archives ({' '.join(sorted(models))}), by names.py.")
    print("# Operator, number of models.")
    for name in sorted(users):
        print(name, len(users[name]))


if __name__ == "__main__":
    main()
