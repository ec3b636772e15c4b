"""The kernels of ``cpu.cpp`` as PyTorch operators.

A compiler is not required: where there is none, where it fails or does not end,
or with ``SAT_INTERP_NATIVE=0``, :func:`takes` returns False and the callers use PyTorch's own
operators: the same numbers to rounding, slower.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_interp.model.kernels.compiled import load_compiled

SOURCE = Path(__file__).with_name("cpu.cpp")
# Contraction gives fused multiply-adds; the arithmetic is otherwise exact.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
D_HEADS = (4, 8, 16, 32)
"""Head sizes the attention kernel is compiled for."""

PROBE = """
import ctypes, sys
kernels = ctypes.CDLL(sys.argv[1])
size, real, one = ctypes.c_int64, ctypes.c_float, ctypes.c_int(1)
def floats(n, fill=None):
    return (real * n)(*(((7 * i) % 13 - 6) / 6 if fill is None else fill for i in range(n)))
n = 40
x, y, z, ranks, out = floats(n), floats(n, 0), floats(n, 0), floats(4, 0), floats(n * n, 0)
assert kernels.gelu_forward(x, y, size(n), one) == 0
assert y[x[:].index(0)] == 0 and abs(y[x[:].index(1)] - 0.8412) < 1e-3
assert kernels.gelu_backward(x, x, y, size(n), one) == 0
sizes = [size(1), size(n), size(n), size(3), size(0)]
assert kernels.k_winners_forward(
    x, y, ranks, *sizes, real(1), real(1e-4), real(1e-2), one) == 0
assert sum(y) == 3 and set(y) == {0, 1}
assert kernels.k_winners_backward(x, ranks, x, z, *sizes[:3], size(0), real(1), one) == 0
assert kernels.masked_gelu_backward(x, x, y, z, z, size(n), one) == 0
shape = [size(1), size(n), size(n), size(1)]
assert kernels.winners_product(x, y, out, z, *shape, one) == 0
assert kernels.winners_outer(x, y, x, out, *shape, one) == 0
own, lse = floats(3 * 3 * 4), floats(3, 0)
grad, past = floats(3 * 3 * 4, 0), floats(3 * 3 * 4, 0)
sizes = [size(1), size(1), size(3), size(1), size(4)]
assert kernels.attention_forward(own, own, z, lse, *sizes, real(1), one) == 0
assert z[:4] == own[8:12]  # the first position sees its own value alone
assert kernels.attention_backward(own, own, z, lse, z, grad, past, *sizes, real(1), one) == 0
top, total = floats(1, 0), floats(1, 0)
assert kernels.exponentials(x, top, total, size(1), size(n), one) == 0
assert top[0] == 1 and abs(total[0] - sum(x)) < 1e-3 * total[0]
"""
"""Program that runs every kernel once on a few numbers, so that a crash happens there."""

Projections = Float[Tensor, "rows pos 3 heads d_head"]

log = logging.getLogger(__name__)


def takes(name: str, tensor: Tensor) -> bool:
    """Whether a kernel computes this: on the CPU, in float32 or less, and it could be built.

    Memory is had for any type; attention is compiled for the head sizes ``D_HEADS``.
    """
    if tensor.device.type != "cpu" or library() is None:
        return False
    if name == "empty_on_large_pages":
        return True
    if name == "attention" and tensor.shape[-1] not in D_HEADS:
        return False
    return tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None, logged once, where they cannot be built."""
    if os.environ.get("SAT_INTERP_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        log.info("no C++ compiler (c++, g++ or $CXX): training on the CPU will be slower")
        return None
    try:
        return load_compiled(SOURCE, FLAGS, compiler, PROBE)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        first = reason.strip().split("\n")[0][:200]
        log.warning("the CPU kernels cannot be built, training will be slower: %s", first)
        return None


def _call(name: str, *arguments: Tensor | int | float) -> None:
    kernels = library()
    assert kernels is not None
    converted: list[ctypes._SimpleCData[Any]] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))
        else:
            converted.append(ctypes.c_float(argument))
    if getattr(kernels, name)(*converted, ctypes.c_int(torch.get_num_threads())):
        raise ValueError(f"{name} is not compiled for this head size")


def _sizes(own: Tensor, read: Tensor | None, streams: int) -> tuple[int, ...]:
    rows, pos, _, heads, d_head = own.shape
    batch = rows // streams if read is None else read.shape[0]
    return rows // max(batch, 1), batch, pos, heads, d_head


@torch.library.custom_op(
    "sat_interp::attention",
    mutates_args=(),
    schema="(Tensor own, Tensor? read, int streams, float scale) -> (Tensor, Tensor)",
)
def attention(
    own: Tensor, read: Tensor | None, streams: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention output z (rows, pos, heads, d_head) and log-sum-exp (rows, heads, pos).

    Row r of ``own`` (rows, pos, 3, heads, d_head: queries, keys, values) attends to itself at its
    own position and at earlier ones to row ``r % batch`` of ``read``, by default the first
    rows / streams of ``own``: so one stream is ordinary causal attention, and two are the clean
    stream and the ablated one, which reads the clean one's past.
    """
    own, read = own.contiguous(), None if read is None else read.contiguous()
    rows, pos, _, heads, d_head = own.shape
    z, lse = own.new_empty(rows, pos, heads, d_head), own.new_empty(rows, heads, pos)
    past = own if read is None else read
    _call("attention_forward", own, past, z, lse, *_sizes(own, read, streams), scale)
    return z, lse


@attention.register_fake
def _(own: Tensor, read: Tensor | None, streams: int, scale: float) -> tuple[Tensor, Tensor]:
    rows, pos, _, heads, d_head = own.shape
    return own.new_empty(rows, pos, heads, d_head), own.new_empty(rows, heads, pos)


@torch.library.custom_op(
    "sat_interp::attention_backward",
    mutates_args=(),
    schema="(Tensor own, Tensor? read, Tensor z, Tensor lse, Tensor grad_z, int streams, "
    "float scale) -> (Tensor, Tensor)",
)
def attention_backward(
    own: Tensor,
    read: Tensor | None,
    z: Tensor,
    lse: Tensor,
    grad_z: Tensor,
    streams: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``own`` and of ``read`` (empty where that is own itself)."""
    own, read = own.contiguous(), None if read is None else read.contiguous()
    grad_own = torch.zeros_like(own)
    grad_read = own.new_empty(0) if read is None else torch.zeros_like(read)
    past, grad_past = (own, grad_own) if read is None else (read, grad_read)
    _call(
        "attention_backward",
        own,
        past,
        z,
        lse,
        grad_z.contiguous(),
        grad_own,
        grad_past,
        *_sizes(own, read, streams),
        scale,
    )
    return grad_own, grad_read


@attention_backward.register_fake
def _(
    own: Tensor,
    read: Tensor | None,
    z: Tensor,
    lse: Tensor,
    grad_z: Tensor,
    streams: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(own), own.new_empty(0) if read is None else torch.empty_like(read)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    own, read, ctx.streams, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(own, read, *output)


def _pull_back(ctx: Any, grad_z: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    own, read, z, lse = ctx.saved_tensors
    gradients = attention_backward(own, read, z, lse, grad_z, ctx.streams, ctx.scale)
    return gradients[0], None if read is None else gradients[1], None, None


attention.register_autograd(_pull_back, setup_context=_keep)


@torch.library.custom_op(
    "sat_interp::exponentials",
    mutates_args=("logits",),
    schema="(Tensor(a!) logits) -> (Tensor, Tensor)",
)
def exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn ``logits`` (rows, entries) into e^(logit - the row's largest), in place.

    Returns:
        Each row's largest logit, and the sum of its exponentials, (rows,) both.
    """
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    tops, totals = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    _call("exponentials", logits, tops, totals, *logits.shape)
    return tops, totals


@exponentials.register_fake
def _(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits)), logits.new_empty(len(logits))


@torch.library.custom_op(
    "sat_interp::empty_on_large_pages",
    mutates_args=(),
    schema="(Tensor like, SymInt[] shape) -> Tensor",
)
def empty_on_large_pages(like: Tensor, shape: list[int]) -> Tensor:
    """``like.new_empty(shape)``, in large pages of memory where the system has them.

    To touch 200 MB for the first time, 4 KiB by 4 KiB, takes as long as to compute them.
    """
    fresh = like.new_empty(shape)
    _call("large_pages", fresh, fresh.numel() * fresh.element_size())
    return fresh


@empty_on_large_pages.register_fake
def _(like: Tensor, shape: list[int]) -> Tensor:
    return like.new_empty(shape)


@torch.library.custom_op("sat_interp::gelu_new", mutates_args=(), schema="(Tensor x) -> Tensor")
def gelu_new(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, elementwise."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _call("gelu_forward", x, y, x.numel())
    return y


@torch.library.custom_op(
    "sat_interp::gelu_new_backward", mutates_args=(), schema="(Tensor grad_y, Tensor x) -> Tensor"
)
def gelu_new_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """The gradient of :func:`gelu_new`."""
    x = x.contiguous()
    grad_x = torch.empty_like(x)
    _call("gelu_backward", grad_y.contiguous(), x, grad_x, x.numel())
    return grad_x


gelu_new.register_fake(torch.empty_like)
gelu_new_backward.register_fake(lambda grad_y, x: torch.empty_like(x))
gelu_new.register_autograd(
    lambda ctx, grad_y: gelu_new_backward(grad_y, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op(
    "sat_interp::k_winners",
    mutates_args=(),
    schema="(Tensor scores, int k, float temperature, float least, float least_spread, bool soft, "
    "bool detached_floor) -> (Tensor, Tensor)",
)
def k_winners(
    scores: Tensor,
    k: int,
    temperature: float,
    least: float,
    least_spread: float,
    soft: bool,
    detached_floor: bool,
) -> tuple[Tensor, Tensor]:
    """The mask of the k winners (or the soft weights), and each row's values for the gradient.

    The mask's gradient is that of softmax(scores / T), T = max(temperature * (x_k - x_{k+1}),
    least * max(spread, least_spread)): see :func:`gates.soft_weights`. Rows whose T is
    that floor have no gradient, or with ``detached_floor`` the one of a constant T. Of winners that
    tie the first wins; units that tie for the k-th place share the gradient that comes through T.
    """
    rows, mask = _rows(scores), scores.new_empty(scores.shape)
    ranks = scores.new_empty(*scores.shape[:-1], 4)
    sizes = (*rows.shape, rows.stride(0))
    _call(
        "k_winners_forward",
        rows,
        mask,
        ranks,
        *sizes,
        k,
        int(soft),
        temperature,
        least,
        least_spread,
    )
    return mask, ranks


@k_winners.register_fake
def _(
    scores: Tensor,
    k: int,
    temperature: float,
    least: float,
    least_spread: float,
    soft: bool,
    detached_floor: bool,
) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), scores.new_empty(*scores.shape[:-1], 4)


@torch.library.custom_op(
    "sat_interp::k_winners_backward",
    mutates_args=(),
    schema="(Tensor scores, Tensor ranks, Tensor grad_mask, float temperature, "
    "bool detached_floor) -> Tensor",
)
def k_winners_backward(
    scores: Tensor, ranks: Tensor, grad_mask: Tensor, temperature: float, detached_floor: bool
) -> Tensor:
    """The gradient of :func:`k_winners`; the weights are computed again."""
    rows, grad_scores = _rows(scores), scores.new_empty(scores.shape)
    sizes = (*rows.shape, rows.stride(0))
    _call(
        "k_winners_backward",
        rows,
        ranks,
        grad_mask.contiguous(),
        grad_scores,
        *sizes,
        int(detached_floor),
        temperature,
    )
    return grad_scores


@k_winners_backward.register_fake
def _(
    scores: Tensor, ranks: Tensor, grad_mask: Tensor, temperature: float, detached_floor: bool
) -> Tensor:
    return scores.new_empty(scores.shape)


def _rows(x: Tensor) -> Tensor:
    """(rows, units) with adjacent units; a view where it can be, as of a slice of all layers'."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _keep_ranks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.temperature, ctx.detached_floor = inputs[2], inputs[6]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _pull_back_winners(
    ctx: Any, grad_mask: Tensor, grad_ranks: Tensor
) -> tuple[Tensor | None, ...]:
    grad = k_winners_backward(*ctx.saved_tensors, grad_mask, ctx.temperature, ctx.detached_floor)
    return grad, None, None, None, None, None, None


k_winners.register_autograd(_pull_back_winners, setup_context=_keep_ranks)


@torch.library.custom_op(
    "sat_interp::winners_product",
    mutates_args=(),
    schema="(Tensor x, Tensor mask, Tensor weight, bool is_gelu) -> Tensor",
)
def winners_product(x: Tensor, mask: Tensor, weight: Tensor, is_gelu: bool) -> Tensor:
    """``(mask * x) @ weight``, with gelu_new(x) if ``is_gelu``, in time that goes with mask's ones.

    Shapes: x and mask (rows, units), weight (units, width).
    """
    out = x.new_empty(len(x), weight.shape[1])
    return _with_winners("winners_product", x, mask, weight, is_gelu, out)


@torch.library.custom_op(
    "sat_interp::winners_outer",
    mutates_args=(),
    schema="(Tensor x, Tensor mask, Tensor y, bool is_gelu) -> Tensor",
)
def winners_outer(x: Tensor, mask: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
    """``(mask * x).T @ y``: the gradient of :func:`winners_product`'s weight.

    Shapes: x and mask (rows, units), y (rows, width).
    """
    out = x.new_zeros(x.shape[1], y.shape[1])
    return _with_winners("winners_outer", x, mask, y, is_gelu, out)


def _with_winners(
    name: str, x: Tensor, mask: Tensor, other: Tensor, is_gelu: bool, out: Tensor
) -> Tensor:
    tensors = (x.contiguous(), mask.contiguous(), other.contiguous())
    _call(name, *tensors, out, *x.shape, other.shape[1], int(is_gelu))
    return out


@torch.library.custom_op(
    "sat_interp::masked_gelu_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor x, Tensor mask) -> (Tensor, Tensor)",
)
def masked_gelu_backward(grad_y: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and mask in ``mask * gelu_new(x)``."""
    tensors = (grad_y.contiguous(), x.contiguous(), mask.contiguous())
    grad_x, grad_mask = torch.empty_like(tensors[1]), torch.empty_like(tensors[2])
    _call("masked_gelu_backward", *tensors, grad_x, grad_mask, x.numel())
    return grad_x, grad_mask


winners_product.register_fake(lambda x, mask, weight, is_gelu: x.new_empty(len(x), weight.shape[1]))
winners_outer.register_fake(lambda x, mask, y, is_gelu: x.new_empty(x.shape[1], y.shape[1]))
masked_gelu_backward.register_fake(
    lambda grad_y, x, mask: (x.new_empty(x.shape), mask.new_empty(mask.shape))
)
