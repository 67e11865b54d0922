"""Feature vectors of regions: the network's bottleneck over a region and what is around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from monai.utils import fall_back_tuple
from torch import Tensor, nn

from alseg.networks.committee import reported_network
from alseg.networks.features import BottleneckFeatures
from alseg.networks.low_precision import checked_forward
from alseg.strategies.places import Box


def region_features(
    network: nn.Module, image: Tensor, inferer: Inferer, *, foreground: bool
) -> Callable[[Box], Tensor]:
    """What gives the features [K] of boxes of a volume.

    One plain pass over a window around the box (over several where the box is larger), whose
    bottleneck activations are averaged over the box, see ``BottleneckFeatures``.

    Args:
        network: in eval mode.
        image: one preprocessed volume, shape [1, channels, D, H, W].
        inferer: runs the network over windows; those of its ``roi_size`` give a box its context.
        foreground: weight with the predicted foreground as well.
    """
    size = tuple(image.shape[2:])
    window = fall_back_tuple(getattr(inferer, "roi_size", size), size)

    @torch.no_grad()
    def features_of(box: Box) -> Tensor:
        first, second, third = (_around(*sides) for sides in zip(box, window, size, strict=True))
        around = (slice(None), slice(None), first, second, third)
        inside = torch.zeros_like(image[:, :1])
        inside[0, 0][box] = 1
        features = BottleneckFeatures(foreground=foreground)

        def predict(windows: Tensor) -> Tensor:
            features.inside = windows[:, -1:]
            return checked_forward(network, windows[:, :-1])

        with features.watching(reported_network(network)):
            inferer(torch.cat([image[around], inside[around]], dim=1), predict)
        return features.vector()

    return features_of


def _around(side: slice, window: int, size: int) -> slice:
    """A window with a side of a box in its middle, as far as the volume reaches."""
    edge = min(max(window, side.stop - side.start), size)
    start = min(max((side.start + side.stop - edge) // 2, 0), size - edge)
    return slice(start, start + edge)
