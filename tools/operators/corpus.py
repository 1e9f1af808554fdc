"""Collects the operators, and the forms of their arguments, that exports of ordinary models use.

    python corpus.py FAMILY > corpus/FAMILY.txt

A folder as second argument gets the code of all archives: TORCHLANE_CODE names it for a test that scans them.

Needs torch 2.13, torchvision, timm and transformers; nothing is downloaded. Every model of `zoo.py` is scripted, traced,
frozen and run through optimize_for_inference, as far as torch can; what cannot be exported is reported on standard error.
Names come from the text of the archive's code, which is what torchlane reads, and forms from the graph.
"""

import collections
import io
import pathlib
import sys
import warnings
import zipfile

import torch

import zoo
from names import code, names

warnings.filterwarnings("ignore")
torch.manual_seed(0)
torch.set_num_threads(1)

# Arguments whose literal values are kept as they are. All other literals of the same type count as one form.
KEPT = {"dtype", "training", "train", "layout", "rounding_mode", "driver", "pin_memory", "memory_format", "mode", "include_last_offset",
        "sparse", "reduce", "is_causal", "normalized", "onesided", "check_errors", "num_heads", "num_head"}

# Families of many large models: what optimize_for_inference makes of them, the others show.
LARGE = {"torchvision", "timm"}

users = collections.defaultdict(set)
forms = collections.defaultdict(set)


def ways(module, inputs):
    """The exports of a module: how, and the archive's module."""
    if inputs is None:
        yield "as it is", module
        return
    module = module.eval()
    for how in ("script", "trace"):
        try:
            with torch.no_grad():
                made = torch.jit.script(module) if how == "script" else torch.jit.trace(module, inputs, check_trace=False, strict=False)
        except Exception as error:
            print(f"#   {how}: {type(error).__name__}: {str(error).strip().splitlines()[0][:90] if str(error).strip() else ''}", file=sys.stderr)
            continue
        yield how, made
        changes = [("frozen", torch.jit.freeze), ("optimized", torch.jit.optimize_for_inference)]
        for further, change in changes if sys.argv[1] not in LARGE else changes[:1]:
            try:
                yield f"{how}, {further}", change(made)
            except Exception as error:
                print(f"#   {how}, {further}: {str(error).strip().splitlines()[0][:90]}", file=sys.stderr)


def form(argument, value):
    """How an argument is written, or None where it says nothing."""
    kind = str(argument.type)
    if kind == "Tensor" or kind.startswith(("List[Tensor]", "t(", "t[")):
        return None
    constant = value.node().kind() == "prim::Constant"
    if not constant:
        if value.node().kind() == "prim::ListConstruct":
            return None
        return "dynamic" if argument.name in KEPT else None
    try:
        literal = value.toIValue()
    except RuntimeError:
        return None
    if literal is None:
        return "None" if argument.name in KEPT else None
    return str(literal).replace(" ", "") if argument.name in KEPT else None


def graph(block):
    for node in block.nodes():
        kind = node.kind()
        if kind.startswith("aten::"):
            try:
                schema = torch._C.parse_schema(node.schema())
            except RuntimeError:
                schema = None
            if schema is not None:
                for argument, value in zip(schema.arguments, node.inputs()):
                    found = form(argument, value)
                    if found is not None:
                        forms[kind.removeprefix("aten::")].add(f"{argument.name}={found}")
        for inner in node.blocks():
            graph(inner)


def read(label, how, made, inputs):
    buffer = io.BytesIO()
    torch.jit.save(made, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    if inputs is not None:
        # An export that does not run after it was loaded is of no use to anybody.
        with torch.no_grad():
            loaded(*inputs)
    with zipfile.ZipFile(buffer) as archive:
        for name, text in code(archive):
            if len(sys.argv) > 2:
                path = pathlib.Path(sys.argv[2], sys.argv[1], label, how, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            for operator in names(text):
                users[operator].add(label)
    for name in loaded._c._method_names():
        try:
            graph(loaded._c._get_method(name).inlined_graph)
        except RuntimeError:
            continue


def main():
    family = sys.argv[1]
    models, archives = 0, 0
    for label, module, inputs in zoo.FAMILIES[family]():
        done = 0
        print(f"# {label}", file=sys.stderr, flush=True)
        for how, made in ways(module, inputs):
            try:
                read(label, how, made, inputs)
                done += 1
            except Exception as error:
                print(f"#   {how}: {str(error).strip().splitlines()[0][:90]}", file=sys.stderr)
        models += bool(done)
        archives += done
    version = torch.__version__.split("+")[0]
    print(f"# What exports of `{family}` call: {models} models, {archives} archives, made by `python corpus.py {family}` with torch {version}.")
    print("# Operator, number of models, and the literals (or `dynamic`) that some of its arguments are.")
    for name in sorted(users):
        print(name, len(users[name]), *sorted(forms[name]))


if __name__ == "__main__":
    main()
