"""Whether this CPU computes the convolutions of a network in bfloat16 as it does in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from alseg.core.counts import by
from alseg.core.errors import PrecisionError

# Of the norm of what a convolution returns. Rounding makes 0.003.
MOST = 0.03
# Of windows that a network is checked with, and laid out for: of a training, an evaluation and a
# scoring. An inferer of whole volumes may have one a volume, and either takes longer than a pass.
MOST_SIZES = 4

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
# what calls the one above; under inference mode a dispatch mode sees these
_CALLS = {
    torch.ops.aten.conv3d.default,
    torch.ops.aten.conv3d.padding,
    torch.ops.aten.conv_transpose3d.input,
}

# for a size and a precision, whether the gradients have been checked too
_checked: WeakKeyDictionary[nn.Module, dict[tuple[torch.Size, torch.dtype], bool]]
_checked = WeakKeyDictionary()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes in on a device; None where it is off."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def check_low_precision(network: nn.Module, windows: Tensor, *, with_gradients: bool) -> None:
    """Check each convolution of a network in autocast's precision, in a pass of its own.

    See `checked_forward`, which does so in a pass that is made anyway.

    Args:
        network: any that returns a tensor; its weights, statistics and mode stay as they are.
        windows: [B, channels, d, h, w].
        with_gradients: whether to check those as well, for a training.

    Raises:
        PrecisionError: if one differs from float32 by more than rounding, or may do so.
    """
    if not _is_to_check(network, windows, with_gradients=with_gradients):
        return
    with (
        _in_eval_mode(network),
        torch.set_grad_enabled(with_gradients),
        _check(network, windows, with_gradients=with_gradients),
    ):
        logits: Tensor = network(windows)
        if with_gradients:
            weights = [weight for weight in network.parameters() if weight.requires_grad]
            # differs from voxel to voxel, as a loss's does, and leaves the random state as it is
            error = torch.linspace(0, 99, logits.numel()).view(logits.shape).cos()
            torch.autograd.grad(logits, weights, error.to(logits), allow_unused=True)


def checked_forward(network: nn.Module, windows: Tensor) -> Tensor:
    """A network's output, whose convolutions are checked in autocast's precision.

    The oneDNN 3.12 of torch 2.13 computes some wrongly in bfloat16: with AMX, see pytorch issue
    169688, and gradients of weights with many channels and few voxels along the first axis; with
    AVX512-BF16, gradients of weights at 2 x 2 x 2 voxels.
    Checks nothing without autocast, on a GPU, for a size that has been checked, or after
    ``MOST_SIZES`` of them.

    Args:
        network: any.
        windows: [B, channels, d, h, w].

    Raises:
        PrecisionError: if one differs from float32 by more than rounding, or may do so.
    """
    is_to_check = _is_to_check(network, windows, with_gradients=False)
    with _check(network, windows, with_gradients=False) if is_to_check else nullcontext():
        output: Tensor = network(windows)
    return output


def _is_to_check(network: nn.Module, windows: Tensor, *, with_gradients: bool) -> bool:
    precision = autocast_dtype("cpu")
    if windows.device.type != "cpu" or precision is None:
        return False
    checked, key = _checked.get(network, {}), (windows.shape[1:], precision)
    if key in checked:
        return with_gradients and not checked[key]
    return len(checked) < MOST_SIZES


@contextmanager
def _check(network: nn.Module, windows: Tensor, *, with_gradients: bool) -> Iterator[None]:
    with _ComparedWithFloat32() as convolutions:
        yield
    precision = torch.get_autocast_dtype("cpu")
    if convolutions.wrong:
        raise PrecisionError(
            f"in {precision} this CPU may give wrong numbers (torch {torch.__version__}) for "
            f"windows of {by(windows.shape[2:])} and the network's {convolutions.wrong}"
        )
    _checked.setdefault(network, {})[windows.shape[1:], precision] = with_gradients


def has_amx() -> bool:
    """Whether this CPU has Intel's matrix units; false where torch (before 2.5) cannot tell."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


class _ComparedWithFloat32(TorchDispatchMode):
    """Computes each convolution in float32 as well, until one differs.

    Attributes:
        wrong: that one in words; empty for none.
    """

    wrong = ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CALLS:
            with self:
                return func.decompose(*args, **kwargs)
        computed = func(*args, **kwargs)
        if func is _FORWARD:
            (image, weight, _, stride, _, _, is_transposed, *_), output = args, computed
        elif func is _BACKWARD:
            output, image, weight, _, stride, _, _, is_transposed, *_ = args
        else:
            return computed
        if image.dtype == torch.float32 or self.wrong:
            return computed
        # the gradient of a transposed convolution is one that is not, and the other way round
        is_plain = (func is _FORWARD) != is_transposed
        ends = (output, image) if is_transposed else (image, output)
        if (is_plain and has_amx() and _depends_on_memory(*ends, weight, stride)) or _differs(
            computed, func, args, kwargs
        ):
            self.wrong = "{}{} of kernel {}, stride {}, from {} to {} voxels".format(
                "" if func is _FORWARD else "gradients of a ",
                "transposed convolution" if is_transposed else "convolution",
                *map(by, (weight.shape[2:], stride, image.shape[2:], output.shape[2:])),
            )
        return computed


def _depends_on_memory(
    image: Tensor, output: Tensor, weight: Tensor, stride: Sequence[int]
) -> bool:
    """Whether oneDNN 3.12 reads memory that it has not written, so that what it returns varies.

    A comparison does not see that each time. Found with kernels, strides, channels and sizes drawn
    at random: one voxel left along the last axis by a stride (pytorch issue 169688), and an image
    of one voxel along the first axis and under 16 channels.
    """
    kernel = weight.shape[2:]
    return (output.shape[-1] == 1 and stride[-1] > 1 and kernel[-1] > 1) or (
        image.shape[2] == 1 and kernel[0] > 1 and image.shape[1] < 16
    )


def _differs(computed: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what a function has returned differs from float32 by more than rounding."""
    with torch.autocast("cpu", enabled=False):
        expected = func(*tree_map_only(Tensor, Tensor.float, args), **kwargs)
    pairs = zip(_tensors(computed), _tensors(expected), strict=True)
    return any(  # nor is it near if it is no number
        not float((value.float() - right).norm()) <= MOST * float(right.norm())
        for value, right in pairs
    )


def _tensors(computed: Any) -> list[Tensor]:
    return [computed] if isinstance(computed, Tensor) else [t for t in computed if t is not None]


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
