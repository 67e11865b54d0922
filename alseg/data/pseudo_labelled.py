"""Labels that nobody annotated: from intensities, for a proxy task, or predicted by a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponent
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from alseg.core.errors import ConfigError, check_choice, check_whole_number
from alseg.core.seeding import seed_for
from alseg.data.annotation import annotated_classes
from alseg.data.datamodule import TrainingDraws
from alseg.system.files import read_tensors


@dataclass(frozen=True)
class IntensityLabel:
    """A binary pseudo-label from the intensities of a preprocessed image.

    Voxels within a window are divided by Otsu's threshold of the window's intensities; those on the
    chosen side are opened (erosion, then dilation) and their largest connected components kept.

    Source: the proxy labels of Nath et al. (MICCAI 2022). Open there, as far as we could read it,
    and settings here: the windows, the thresholds and the number of components.

    Args:
        window: lowest and highest intensity, in the units of the preprocessed image; None for all.
        side: ``above`` or ``below`` the threshold, or ``both`` for the whole window.
        opening_voxels: how often to erode and dilate.
        n_components: how many connected components to keep.
        channel: of the image.

    Raises:
        ConfigError: if a setting is out of range.
    """

    window: Sequence[float] | None = None
    side: str = "above"
    opening_voxels: int = 1
    n_components: int = 1
    channel: int = 0

    def __post_init__(self) -> None:
        check_choice("proxy: side", self.side, ("above", "below", "both"))
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError(f"proxy: window is {list(self.window)}; it must hold [low, high]")
        check_whole_number("proxy: opening_voxels", self.opening_voxels, at_least=0)
        check_whole_number("proxy: n_components", self.n_components, at_least=1)
        check_whole_number("proxy: channel", self.channel, at_least=0)

    def __call__(self, image: Tensor) -> Tensor:
        """[channels, D, H, W] to classes 0 and 1, uint8 [1, D, H, W]."""
        values = image[self.channel].numpy()
        low, high = self.window or (-np.inf, np.inf)
        mask = (values >= low) & (values <= high)
        if self.side != "both" and mask.any() and np.ptp(values[mask]) > 0:
            threshold = threshold_otsu(values[mask])
            mask &= values > threshold if self.side == "above" else values <= threshold
        if self.opening_voxels:
            mask = ndimage.binary_opening(mask, iterations=self.opening_voxels)
        keep = KeepLargestConnectedComponent(num_components=self.n_components)
        return torch.as_tensor(keep(torch.from_numpy(mask[None])), dtype=torch.uint8)


class ProxyDraws(TrainingDraws):
    """Training samples whose labels come only from intensities.

    Takes the arguments of ``TrainingDraws`` after ``intensity_label``; it never sees a label file.
    """

    def __init__(self, intensity_label: Callable[[Tensor], Tensor], *args: Any) -> None:
        super().__init__(*args)
        self.intensity_label = intensity_label

    def sample(self, case_id: str) -> dict[str, Tensor]:
        """The image and its pseudo-label, which is computed once and kept with the volume."""
        label = self.cache.derived(case_id, repr(self.intensity_label), self.intensity_label)
        return {"image": self.cache.image(case_id)["image"], "label": label}


@dataclass(frozen=True)
class PseudoLabel:
    """A predicted label: its file, a tensor [1, D, H, W] of classes, and its confidence in [0, 1].

    Attributes:
        path: the file.
        weight: of the case in the loss, where an annotated one has 1.
    """

    path: Path
    weight: float


class MixedDraws(TrainingDraws):
    """Training samples of annotated and of pseudo-labelled volumes, with their ``weight``.

    Of any n draws in a row a fixed share is annotated; each kind comes in shuffled passes.

    Args:
        pseudo_labels: by case.
        annotated_share: of the draws, in [0, 1].
        args: those of ``TrainingDraws``.
    """

    def __init__(
        self, pseudo_labels: Mapping[str, PseudoLabel], annotated_share: float, *args: Any
    ) -> None:
        super().__init__(*args)
        self.pseudo_labels = pseudo_labels
        n = len(self.case_ids)
        rng = np.random.default_rng(seed_for(self.base_seed, self.round_number, "pseudo_labels"))
        ids = sorted(pseudo_labels)
        passes = [rng.permutation(len(ids)) for _ in range(-(-n // len(ids)))]
        predicted = iter([ids[i] for i in np.concatenate(passes)])
        annotated = iter(self.case_ids)
        # draw i is annotated where the annotated share of i + 1 draws passes a whole number
        counts = np.floor(annotated_share * np.arange(n + 1) + 1e-9)
        self.case_ids = [next(annotated if step else predicted) for step in np.diff(counts)]

    def sample(self, case_id: str) -> dict[str, Tensor]:
        """The image, its label and its weight."""
        pseudo = self.pseudo_labels.get(case_id)
        if pseudo is None:
            return super().sample(case_id) | {"weight": torch.tensor(1.0)}
        image, label = self.cache.image(case_id)["image"], read_tensors(pseudo.path)
        return {
            "image": image,
            "label": label,
            "weight": torch.tensor(pseudo.weight),
            **annotated_classes(self.cache.task, None),
        }
