"""Sorts every operator of torch 2.13 into operators.txt: `python operators.py > operators.txt`, from this folder.

What is `ordinary` may be called by any model; each other heading says why strict refuses what is below it. An operator
that a newer torch adds is in none of them, and is refused as unknown until this has been run again.
"""

import re
import textwrap

import torch

# Functions that libtorch defines in TorchScript itself (frontend/builtin_functions.cpp): they have no schema to list.
BUILTIN = "_single _pair _triple _quadruple floordiv prim::ndim prim::T prim::H prim::mT prim::mH prim::shape".split()

# Names with a leading underscore are made for other operators, which have checked what they pass on. These are the
# ones that exports of ordinary models call; that they check what they are given was judged by their names and documentation.
PRIVATE_BUT_ORDINARY = set("""
__and__ __contains__ __derive_index __getitem__ __iand__ __ilshift__ __interpolate __ior__ __irshift__ __is__ __isnot__
__ixor__ __lshift__ __not__ __or__ __range_length __round_to_zero_floordiv __rshift__ __upsample __upsample_bilinear
__upsample_nearest __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _aminmax _assert_async _assert_scalar
_assert_tensor_metadata _batch_norm_impl_index _batch_norm_no_update _cast_Byte _cast_Char _cast_Double _cast_Float
_cast_Half _cast_Int _cast_Long _cast_Short _conj _conj_physical _convolution _convolution_mode _dim_arange
_embedding_bag _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _get_tracing_state _infer_size _is_all_true _is_any_true
_is_zerotensor _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _list_to_tensor
_local_scalar_dense _log_softmax _logcumsumexp _native_batch_norm_legit _native_batch_norm_legit_no_training
_native_multi_head_attention _ncf_unsqueeze _ncf_view _neg_view _nested_tensor_from_mask
_nested_tensor_from_mask_left_aligned _no_grad_embedding_renorm_ _no_grad_fill_ _no_grad_normal_ _no_grad_uniform_
_no_grad_zero_ _pack_padded_sequence _pack_sequence _pad_circular _pad_enum _pad_packed_sequence _prelu_kernel
_reshape_copy _reshape_from_tensor _safe_softmax _scaled_dot_product_attention_math _set_item _shape_as_tensor
_size_if_not_equal _softmax _stack _tensor_to_list _to_copy _transformer_encoder_layer_fwd _trilinear _unique _unique2
_unsafe_view _unwrap_optional _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface
""".split())

PROPERTIES = "data is_sparse is_coalesced sparse_dim is_quantized".split()

PRIM_ORDINARY = set("""
EnumName EnumValue NumToTensor Print RaiseException StringIndex TupleIndex TupleUnpack Uninitialized abs data device
dtype index is_cpu is_cuda is_ipu is_maia is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse
is_sparse_csr is_vulkan is_xla is_xpu itemsize layout max min name nbytes rangelist requires_grad tolist type
unchecked_cast unchecked_unwrap_optional ModuleContainerIndex
""".split())

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
               r"(linalg_)?lu_solve|linalg_ldl_solve|_?ctc_loss"),
    # Only what makes sparse or quantized tensors: without those, what reads their parts has nothing to read.
    ("sparse", r".*sparse.*|.*_(csr|csc|bsr|bsc|coo).*|_coalesced?_?|_spdiags|_spsolve|hspmm|sspaddmm|smm"),
    ("quantized", r"quantize.*|_?choose_qparams.*|empty_quantized|fbgemm.*|"
                  r".*(quantized|qparams|int4pack|int8pack|quant_|fp16).*|_int_mm"),
    ("training", r".*backward.*|backward|retains?_grad|requires_grad_|grad|_grad_sum_to_size|.*_grad|glu_jvp|"
                 r"batch_norm_(gather|update|stats|elemt).*|_(amp|fused)_.*|fused_moving.*|"
                 r"rrelu_with_noise_functional|prim::(grad|Autograd.*|RequiresGradCheck|DifferentiableGraph)"),
    ("vendor", r"_?(cudnn|miopen|mkldnn|nnpack|cslt|mps|triton)_.*|.*_(mps|cudnn)|to_mkldnn|.*overrideable.*|"
               r"prim::.*(MKLDNN|mkldnn|oneDNN).*|.*(flash|efficient)_attention.*"),
    ("internal", r"_.*|prim::.*|data|output_nr|has_torch_function|sym_constrain_range.*|conv_depthwise3d"),
]


def heading(name):
    private = name.startswith("_")
    if private and name in PRIVATE_BUT_ORDINARY:
        return "ordinary"
    if name.startswith("prim::") and name[6:] in PRIM_ORDINARY:
        return "ordinary"
    # Fake quantization computes with ordinary numbers; the names of properties are too common to be refused.
    if name.startswith("fake_quantize_per") and "cachemask" not in name or name in BUILTIN or name in PROPERTIES:
        return "ordinary"
    for why, pattern in REFUSED:
        if re.fullmatch(pattern, name):
            return why
    return "ordinary"


def main():
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    names = {name.removeprefix("aten::") for name in names if name.startswith(("aten::", "prim::"))} | set(BUILTIN)
    print(f"# Every operator of torch {torch.__version__.split('+')[0]}, sorted by operators.py; `aten::` is left off.")
    print("# A heading other than [ordinary] is the reason why strict refuses what is below it.")
    for why in ["ordinary"] + [why for why, _ in REFUSED]:
        found = sorted(name for name in names if heading(name) == why)
        print(f"[{why}]")
        print(textwrap.fill(" ".join(found), 118, break_on_hyphens=False, break_long_words=False))


if __name__ == "__main__":
    main()
