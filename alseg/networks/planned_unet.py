"""A network of planned levels."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet

from alseg.core.errors import ConfigError, check_choice
from alseg.networks.dropout import active_dropout_layers

NORMS = ("batch", "instance")


def planned_unet(
    in_channels: int,
    out_channels: int,
    strides: Sequence[Sequence[int]],
    kernel_size: Sequence[Sequence[int]],
    filters: Sequence[int],
    dropout: float,
    norm: str,
) -> DynUNet:
    """MONAI's DynUNet without deep supervision; it goes up as it went down.

    Args:
        in_channels: of the image.
        out_channels: classes.
        strides: [levels][3] at the entry of each level, 1 at the first.
        kernel_size: [levels][3].
        filters: [levels].
        dropout: rate, in front of each norm.
        norm: batch or instance.

    Raises:
        ConfigError: if the levels do not have the same number, or are fewer than three.
    """
    check_choice("model.norm", norm, NORMS)
    n_levels = {len(strides), len(kernel_size), len(filters)}
    if len(n_levels) > 1 or min(n_levels) < 3:
        raise ConfigError(
            f"model.strides, model.kernel_size and model.filters are of {len(strides)}, "
            f"{len(kernel_size)} and {len(filters)} levels; they must be of as many, at least three"
        )
    network = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[tuple(k) for k in kernel_size],
        strides=[tuple(s) for s in strides],
        upsample_kernel_size=[tuple(s) for s in strides[1:]],
        filters=list(filters),
        norm_name=(norm, {"affine": True}),
        dropout=dropout,
    )
    # MONAI drops logits as well: 0 for a class is no answer of the network
    for layer in active_dropout_layers(network.output_block):
        layer.p = 0.0
    return network
