"""Writes aliases.txt, with torch 2.13: `python aliases.py`, from this folder.

For each operator of pure_operators.txt: may what it returns be the memory of an argument? The alias annotations of the
schemas say so, but only an operator with a kernel of its own is held to them: one that is composed of others may return its
argument, whatever its schema says (`dropout` in evaluation does). Those are sorted by hand below.
"""

from collections import defaultdict
from textwrap import fill

import torch

# Composed operators, looked at one by one in ATen/native of 2.13: the result is new memory for any arguments.
FRESH = """
Size absolute adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d arccos arccosh arcsin arcsinh
arctan arctan2 arctanh argsort argwhere avg_pool1d batch_norm bilinear cdist clip column_stack concat concatenate conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d corrcoef cosine_embedding_loss cosine_similarity cov cross
cross_entropy_loss ctc_loss det divide dstack embedding_bag fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2
fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fix fliplr flipud float_power
frobenius_norm greater greater_equal grid_sampler group_norm gru gru_cell hinge_embedding_loss hstack inner instance_norm isclose
isfinite isneginf isposinf isreal istft kl_div kron l1_loss layer_norm ldexp less less_equal linalg_cond linalg_det linalg_eigvalsh
linalg_inv linalg_matmul linalg_matrix_norm linalg_norm linalg_pinv linalg_solve linalg_svd linalg_svdvals linear log_sigmoid
log_softmax logdet logsumexp lstm lstm_cell margin_ranking_loss matmul max max_pool1d max_pool1d_with_indices max_pool2d max_pool3d
median min msort multiply nanmean nanquantile negative nll_loss nll_loss_nd nonzero_numpy norm norm_except_dim not_equal one_hot
orgqr outer pad pad_sequence pairwise_distance pdist pinverse poisson_nll_loss prelu prim::NumToTensor prim::abs prim::index
prim::max prim::min prim::rangelist quantile relu6 rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell row_stack rrelu
scaled_dot_product_attention _scaled_dot_product_attention_math selu size slogdet softmax square special_digamma special_erf
special_erfc special_erfinv special_exp2 special_expit special_expm1 special_gammaln special_i0 special_log1p special_log_softmax
special_logit special_logsumexp special_ndtr special_psi special_round special_sinc special_softmax special_xlogy std std_mean stft
stride sub subtract sum take_along_dim tensor tensordot tile trapezoid trapz triplet_margin_loss true_divide
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d vander var var_mean vstack _weight_norm where _shape_as_tensor repeat_interleave index_select gather
cumulative_trapezoid diagflat nested_to_padded_tensor arange broadcast_shapes __and__ __or__ __xor__ splitlines
_convolution _dim_arange _infer_size _pad_packed_sequence _size_if_not_equal diag fft_hfft2 fft_hfftn fft_ihfft2
fft_ihfftn ger index index_put inverse linalg_cholesky linalg_eigh linalg_eigvals linalg_lu_factor linalg_matrix_rank
linalg_slogdet linalg_solve_ex linalg_vecdot matrix_exp nll_loss2d nuclear_norm qr slow_conv3d special_gammainc
special_gammaincc special_multigammaln special_polygamma svd thnn_conv2d rsplit sym_size sym_stride
""".split()

# Likewise: it may be the memory of the first argument, never of another.
FIRST = """
_cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short alpha_dropout chalf data dropout
feature_alpha_dropout feature_dropout sum_to_size to_dense type_as unsafe_chunk unsafe_split unsafe_split_with_sizes
prim::unchecked_cast as_tensor conj_physical chunk cpu cuda dsplit hsplit split tensor_split to vsplit
""".split()

PURE = {
    name
    for line in open("../pure_operators.txt")
    if not line.startswith("#")
    for name in line.split()
}
SCALARS = {"int", "bool", "float", "str", "Scalar", "number", "Device", "complex", "NoneType", "Generator", "Layout"}


def has_own_kernel(schema):
    name = schema.name + ("." + schema.overload_name if schema.overload_name else "")
    try:
        return not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    except RuntimeError:
        return False


def before(value):
    return value.alias_info.before_set if value.alias_info else set()


def writes(schema):
    return [at for at, argument in enumerate(schema.arguments) if argument.is_out or (argument.alias_info and argument.alias_info.is_write)]


def kind(key, overloads):
    if key in FRESH:
        return "fresh"
    if key in FIRST:
        return "first"
    found = {"fresh"}
    for schema in overloads:
        returned = set().union(*(before(value) for value in schema.returns))
        if returned:
            first = before(schema.arguments[0]) if schema.arguments else set()
            found.add("first" if returned <= first else "any")
        elif not all(str(value.type) in SCALARS for value in schema.returns) and not has_own_kernel(schema):
            found.add("any")
    return "any" if "any" in found else "first" if "first" in found else "fresh"


sorted_by = defaultdict(list)
overloads = defaultdict(list)
writes_more = []
for schema in torch._C._jit_get_all_schemas():
    namespace, name = schema.name.split("::", 1)
    key = name if namespace == "aten" else schema.name
    where = writes(schema)
    if namespace in ("aten", "prim", "quantized"):
        if not where:
            overloads[key].append(schema)
        elif name.endswith("_") and any(at > 0 and not schema.arguments[at].kwarg_only for at in where):
            writes_more.append(key)
for key, schemas in overloads.items():
    if key in PURE or key.startswith("quantized::"):
        sorted_by[kind(key, schemas)].append(key)
missing = [name for name in FRESH + FIRST if name not in sorted_by["fresh"] + sorted_by["first"]]
assert set(missing) <= {"batch_norm", "instance_norm"}, missing
sorted_by["fresh"] += missing
sorted_by["more"] = sorted(set(writes_more))

with open("aliases.txt", "w") as out:
    out.write(
        "# Made by aliases.py: what an operator's result may share memory with.\n"
        "# fresh: with nothing. first: with the first argument. Not listed: with any.\n"
        "# more: in-place operators that write to more than their first argument.\n"
    )
    for title in ("fresh", "first", "more"):
        out.write(f"{title}:\n{fill(' '.join(sorted(sorted_by[title])), 120)}\n")
print({title: len(names) for title, names in sorted_by.items()})
print("any:", *sorted(sorted_by["any"]))
