"""Convolutions laid out for a CPU: the same numbers in less time.

Four things are slow on a CPU. Batch norm reads and writes every activation once more, and is a
factor and a shift of the convolution before it. Channels first are copied into blocks of channels
and back by each convolution. A convolution to a few channels at full resolution, such as to three
classes, computes as many channels as a register holds and throws the others away: here some
neighbours along the last axis are computed as channels, which in memory they already are (and, on
the way up, two along the axis before it, which takes a copy and yet less time). That is for float32
only: in bfloat16 it takes as long, and the oneDNN 3.12 of torch 2.13 gives wrong numbers on a CPU
with AMX for kernels of 4 with a stride of 4 along the last axis, of 16 channels. And torch
2.13 takes the convolution of a single window, or with a kernel of one, to code of its own, and not
to oneDNN's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

REGISTER = 16  # float32 that AVX-512 computes at once
NEIGHBOURS = 4  # computed as channels; 2 and 8 took longer


class LaidOut(nn.Module):
    """A 3D convolution, and the batch norm behind it, in weights of its own.

    Args:
        convolution: with groups = dilation = 1 and zero padding.
        norm: in eval mode, with running statistics; None for none.
        channels: of the input, those that are given to this layer; None for all of them.
        is_shifted: whether this layer adds the bias; of several that are added up, one does.
    """

    def __init__(
        self,
        convolution: nn.Conv3d | nn.ConvTranspose3d,
        norm: nn.BatchNorm3d | None,
        channels: Sequence[int] | None = None,
        *,
        is_shifted: bool = True,
    ) -> None:
        super().__init__()
        # in a tuple, so that the network's own layers do not become layers of this one
        self._layers = convolution, norm
        self._channels = None if channels is None else torch.tensor(channels)
        self._is_shifted = is_shifted
        self.adds_input = False  # to what it computes
        self.is_transposed = isinstance(convolution, nn.ConvTranspose3d)
        n_out, self.rows, self.columns = convolution.out_channels, 1, 1
        if isinstance(convolution, nn.ConvTranspose3d):
            if 2 * n_out <= REGISTER and _doubles(convolution, 2):
                self.columns = 2
                self.rows = 2 if 4 * n_out <= REGISTER and _doubles(convolution, 1) else 1
        elif 2 * n_out <= REGISTER and convolution.stride[2] == 1:
            self.columns = NEIGHBOURS
        self.refresh()

    @property
    def convolution(self) -> nn.Conv3d | nn.ConvTranspose3d:
        """The network's own layer."""
        return self._layers[0]

    @property
    def n_neighbours(self) -> int:
        """How many voxels' channels are computed as those of one."""
        return self.rows * self.columns

    @property
    def keeps_shape(self) -> bool:
        """Whether its output has the size and channels of its input."""
        convolution = self.convolution
        padding = convolution.padding
        assert not isinstance(padding, str)
        return (
            not self.is_transposed
            and self._channels is None
            and convolution.in_channels == convolution.out_channels
            and set(convolution.stride) == {1}
            and tuple(convolution.kernel_size) == tuple(2 * p + 1 for p in padding)
        )

    def of_channels(self, channels: Sequence[int], *, is_shifted: bool) -> LaidOut:
        """What this layer makes of some channels of its input."""
        return LaidOut(*self._layers, channels, is_shifted=is_shifted)

    def refresh(self) -> None:
        """Take in the weights as they are now."""
        convolution, norm = self._layers
        weight = convolution.weight.detach()  # [out, in, ...], transposed [in, out, ...]
        bias = convolution.bias
        shift = weight.new_zeros(convolution.out_channels) if bias is None else bias.detach()
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = (norm.running_var + norm.eps).rsqrt()
            if norm.weight is not None:
                factor = factor * norm.weight.detach()
            shift = (shift - norm.running_mean) * factor
            if norm.bias is not None:
                shift = shift + norm.bias.detach()
            axes = (1, -1, 1, 1, 1) if self.is_transposed else (-1, 1, 1, 1, 1)
            weight = weight * factor.view(axes)
        if self._channels is not None:
            weight = weight.index_select(0 if self.is_transposed else 1, self._channels)
        if self.adds_input:
            weight = weight.clone()
            x, y, z = (size // 2 for size in weight.shape[2:])
            weight[..., x, y, z].diagonal().add_(1)
        self.plain = weight.contiguous(memory_format=torch.channels_last_3d)
        self.shift = shift if self._is_shifted else torch.zeros_like(shift)
        if self.n_neighbours > 1:
            if self.is_transposed:
                wide = _doubled(weight, 4)
                wide = _doubled(wide, 3) if self.rows > 1 else wide
            else:
                wide = _widened(weight, self.columns)
            self.wide = wide.contiguous(memory_format=torch.channels_last_3d)
            self.wide_shift = self.shift.repeat(self.n_neighbours)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B, in, d, h, w] to [B, out, d', h', w'], channels last."""
        convolution = self.convolution
        if isinstance(convolution, nn.ConvTranspose3d):
            return self._upwards(x, convolution)
        stride, padding = convolution.stride, convolution.padding
        assert not isinstance(padding, str)
        n = self.columns if _in_float32(x, self.plain) else 1
        width = x.shape[-1] + 2 * padding[2] - convolution.kernel_size[2] + 1
        if n == 1 or width % n:
            return _convolved(x, self.plain, self.shift, stride, padding)
        y = _convolved(x, self.wide, self.wide_shift, (*stride[:2], n), padding)
        return _as_neighbours(y, 1, n)

    def _upwards(self, x: Tensor, convolution: nn.ConvTranspose3d) -> Tensor:
        stride, padding, extra = convolution.stride, convolution.padding, convolution.output_padding
        assert not isinstance(padding, str)
        if self.n_neighbours == 1 or not _in_float32(x, self.plain):
            return F.conv_transpose3d(x, self.plain, self.shift, stride, padding, extra)
        n = 1 if self.rows > 1 else 2  # axes that stay as they are
        stride, padding, extra = (
            (*stride[:n], 1, 1)[:3],
            (*padding[:n], 0, 0)[:3],
            (*extra[:n], 0, 0)[:3],
        )
        y = F.conv_transpose3d(x, self.wide, self.wide_shift, stride, padding, extra)
        # the first of each widened axis lies outside
        y = y[..., 1:, 1:] if self.rows > 1 else y[..., 1:]
        return _as_neighbours(y, self.rows, self.columns)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """As ``F.conv3d``, which keeps single windows and kernels of one away from oneDNN."""
    if x.shape[1] == 1:  # of one channel no layout can be told: torch takes it for channels first
        x = x.squeeze(1).unsqueeze(-1).movedim(-1, 1)
    if _in_float32(x, weight) and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def _in_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution computes in float32."""
    return x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _doubles(convolution: nn.ConvTranspose3d, axis: int) -> bool:
    """Whether an axis gets twice as long by a kernel of 3."""
    last = (f[axis] for f in (convolution.kernel_size, convolution.stride, convolution.padding))
    return tuple(last) == (3, 2, 1) and convolution.output_padding[axis] == 1


def _widened(weight: Tensor, n: int) -> Tensor:
    """The kernel of n neighbours along the last axis.

    [out, in, ..., k] -> [n out, in, ..., k + n - 1]
    """
    n_out, *others, size = weight.shape
    wide = weight.new_zeros(n, n_out, *others, size + n - 1)
    for place in range(n):
        wide[place, ..., place : place + size] = weight
    return wide.flatten(0, 1)


def _doubled(weight: Tensor, axis: int) -> Tensor:
    """The transposed kernel of both halves of a voxel: [in, out, ...] -> [in, 2 out, ...].

    Along the axis, of 3 taps before and 2 after, y[2i] = w[1] x[i] and
    y[2i+1] = w[2] x[i] + w[0] x[i+1].
    """
    before, middle, after = weight.unbind(axis)
    even = torch.stack((torch.zeros_like(middle), middle), axis)
    return torch.cat((even, torch.stack((before, after), axis)), 1)


def _as_neighbours(y: Tensor, rows: int, columns: int) -> Tensor:
    """Channels back to neighbours: [B, r c C, d, h, w] -> [B, C, d, r h, c w]; no copy if r = 1."""
    b, _, d, h, w = y.shape
    y = y.permute(0, 2, 3, 4, 1).unflatten(-1, (rows, -1)).transpose(3, 4)  # [b, d, h, r, w, c C]
    return y.reshape(b, d, rows * h, columns * w, -1).permute(0, 4, 1, 2, 3)


def pays(network: nn.Module) -> bool:
    """Whether a network runs faster that way: its norms fold, others want channels first."""
    norms = (m for m in network.modules() if isinstance(m, nn.GroupNorm | _NormBase))
    return all(isinstance(m, nn.BatchNorm3d) and m.running_mean is not None for m in norms)
