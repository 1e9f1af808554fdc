"""Sorts every operator of torch 2.13: `python operators.py > ../../crates/archive/src/safety/operators.txt`, from this folder.

`[ordinary]` is what exports in `corpus/` call and what `by_hand.txt` adds, each with a reason; any model may call it. So is what
stands below `[values]`, but some values of the arguments end the process, which docs/operators.md lists. Each other heading says
why strict refuses what is below it. An operator that a newer torch adds is in none of them, and is refused as unknown.
"""

import pathlib
import re
import sys
import textwrap

import torch

# Functions that libtorch defines in TorchScript itself (frontend/builtin_functions.cpp): they have no schema to list.
BUILTIN = "_single _pair _triple _quadruple floordiv prim::ndim prim::T prim::H prim::mT prim::mH prim::shape".split()

# Ordinary operators that end the process, or read outside their arguments, for some values: rows of docs/operators.md.
VALUES = set("""
remainder floordiv __round_to_zero_floordiv div embedding_bag linalg_lstsq sort _weight_norm count replace linalg_matrix_power matrix_power
""".split())

HERE = pathlib.Path(__file__).resolve().parent


def corpus():
    """Operators that exports call."""
    lines = [line for path in sorted(HERE.glob("corpus/*.txt")) for line in path.read_text().splitlines()]
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


def by_hand():
    """Operators by heading."""
    found, heading = {}, None
    for line in (HERE / "by_hand.txt").read_text().splitlines():
        if line.startswith("["):
            heading = found.setdefault(line[1:].split("]")[0], set())
        elif line and not line.startswith("#"):
            heading.update(line.split())
    return found


# Heading, and a pattern of the whole name; the first that fits counts.
REFUSED = [
    ("files", r"from_file|save|load.*"),
    ("python", r"prim::(PythonOp|IgnoredPythonOp)"),
    ("distributed", r"prim::rpc_.*|get_gradients|to_here|owner|owner_name|is_owner|confirmed_by_owner|local_value"),
    ("tasks", r"wait|prim::awaitable.*|prim::fork|fork"),
    ("process", r"manual_seed|seed|initial_seed|record_stream|prim::(AddStatValue|TimePoint)|_get_cpu_capability|"
                r"_autocast.*|_?cufft.*"),
    # `segment_reduce` can be told not to check; the solvers take pivots, and `ctc_loss` targets, as indices unchecked.
    ("memory", r".*as_strided.*|set_|set_data|_?resize_.*|_resize.*|_reshape_alias.*|_nested_view_from.*|prim::id|"
               r"_index_put_impl.*|_unsafe_.*|_lazy_clone|_fw_primal.*|_chunk_cat|segment_reduce|"
               r"(linalg_)?lu_solve|linalg_ldl_solve|_?ctc_loss|lu_unpack|set|.*_embedding_bag.*|_stack|_fft_.*|"
               r"_?native_batch_norm.*|_batch_norm.*|.*_weight_norm.*|log_sigmoid_forward|multilabel_margin_loss.*"),
    # Only what makes sparse or quantized tensors: without those, what reads their parts has nothing to read.
    ("sparse", r".*sparse.*|.*_(csr|csc|bsr|bsc|coo).*|_coalesced?_?|_spdiags|_spsolve|hspmm|sspaddmm|smm"),
    ("quantized", r"quantize.*|_?choose_qparams.*|empty_quantized|fbgemm.*|"
                  r".*(quantized|qparams|int4pack|int8pack|quant_|fp16).*|_int_mm"),
    ("training", r".*backward.*|backward|retains?_grad|requires_grad_|grad|_grad_sum_to_size|.*_grad|glu_jvp|"
                 r"batch_norm_(gather|update|stats|elemt).*|_(amp|fused)_.*|fused_moving.*|"
                 r"rrelu_with_noise_functional|prim::(grad|Autograd.*|RequiresGradCheck|DifferentiableGraph)"),
    ("vendor", r"_?(cudnn|miopen|mkldnn|nnpack|cslt|mps|triton)_.*|.*_(mps|cudnn)|to_mkldnn|.*overrideable.*|"
               r"prim::.*(MKLDNN|mkldnn|oneDNN).*|.*(flash|efficient)_attention.*"),
    ("internal", r"_.*|prim::.*|data|output_nr|has_torch_function|sym_constrain_range.*|conv_depthwise3d|native_.*|.*_forward|"
                 r".*_copy|lift.*|alias|slow_conv.*|thnn_.*|sym_.*|.*_functional|set"),
    ("rare", r".*"),
]


def heading(name, ordinary):
    if name in ordinary:
        return "values" if name in VALUES else "ordinary"
    return next(why for why, pattern in REFUSED if re.fullmatch(pattern, name))


def main():
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    names = {name.removeprefix("aten::") for name in names if name.startswith(("aten::", "prim::"))} | set(BUILTIN)
    hand = by_hand()
    refused = hand.pop("refused")
    ordinary = (corpus() | set().union(*hand.values())) - refused
    print(f"# Every operator of torch {torch.__version__.split('+')[0]}, sorted by tools/operators/operators.py; `aten::` is left off.")
    print("# A heading other than [ordinary] and [values] is the reason why strict refuses what is below it.")
    for why in ["ordinary", "values"] + [why for why, _ in REFUSED]:
        found = sorted(name for name in names if heading(name, ordinary) == why)
        print(f"[{why}]")
        print(textwrap.fill(" ".join(found), 118, break_on_hyphens=False, break_long_words=False))
    for name in sorted(set().union(*hand.values()) - names):
        print(f"by_hand.txt: torch has no {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
