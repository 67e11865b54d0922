"""Pictures and NIfTI maps of the volumes that a round acquired."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import convert_to_tensor
from torch import Tensor

from alseg.active.acquisition import Acquisition
from alseg.active.pictures import draw_query
from alseg.data.cache import VolumeCache
from alseg.data.nifti import write_nifti
from alseg.strategies.statistics import class_dtype
from alseg.training.metrics import hard_labels
from alseg.training.module import SegmentationModule


class QueryPictures(pl.Callback):
    """Draws the top queries of a round, with their true labels, after the acquisition.

    It must come behind the acquisition, which reveals the labels.

    The statistics of the few chosen volumes are computed again rather than kept for the whole pool;
    the masks depend on names, so they are the ones that were scored.

    Args:
        acquisition: tells which cases were acquired.
        cache: gives the volumes.
        classes: the foreground class names.
        n_pictures: how many queries of a round to draw, from rank 1.
        save_maps: also write the prediction and the uncertainty of every query as NIfTI.
        folder: the round's folder; pictures go to ``pictures/``, maps to ``maps/``.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        cache: VolumeCache,
        classes: tuple[str, ...],
        n_pictures: int,
        save_maps: bool,
        folder: Path,
    ) -> None:
        self.acquisition = acquisition
        self.cache = cache
        self.classes = classes
        self.n_pictures = n_pictures
        self.save_maps = save_maps
        self.folder = folder

    @torch.no_grad()
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the top queries on the first rank."""
        acquired = self.acquisition.acquired
        if acquired is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SegmentationModule)
        assert pl_module.scoring is not None
        for row in acquired.queries:
            is_drawn = row["rank"] <= self.n_pictures
            if not is_drawn and not self.save_maps:
                continue
            case_id, score = row["case_id"], row["score"]
            entry = self.cache.image(case_id)
            image = entry["image"].unsqueeze(0).to(pl_module.device)  # [1, channels, D, H, W]
            scoring = pl_module.scoring
            label = seen = None
            if is_drawn or scoring.strategy.reads_labels:  # not hidden any more: it was acquired
                label = self.cache.label(case_id, acquired.labels[case_id])[0]  # [D, H, W]
            if label is not None and scoring.strategy.reads_labels:
                seen = label.to(image.device)
            statistics = scoring.statistics(pl_module.network, image, case_id, seen)
            prediction = hard_labels(statistics.mean.unsqueeze(0))[0, 0].cpu()  # [D, H, W]
            uncertainty = scoring.strategy.uncertainty_map(statistics).float().cpu()
            if is_drawn:
                draw_query(
                    self.folder / "pictures" / f"{row['rank']:02d}_{case_id}.png",
                    image=entry["image"][0],
                    prediction=prediction,
                    uncertainty=uncertainty,
                    label=label,
                    affine=entry["affine"],
                    classes=self.classes,
                    title=f"{case_id}: query {row['rank']} of round {row['round']}, "
                    f"{scoring.strategy.name}" + ("" if score is None else f" {score:.3g}"),
                )
            if self.save_maps:
                classes = prediction.to(class_dtype(len(statistics.mean)))
                to_source = {"prediction": classes, "uncertainty": uncertainty}
                for kind, volume in to_source.items():
                    native = in_source_space(volume, entry, nearest=kind == "prediction")
                    path = self.folder / "maps" / f"{case_id}_{kind}.nii.gz"
                    write_nifti(
                        path, native.to(volume.dtype), self.cache.task.cases[case_id].images[0]
                    )


def in_source_space(volume: Tensor, entry: dict[str, Tensor], *, nearest: bool) -> Tensor:
    """Resample a volume [D, H, W] from the preprocessed grid onto the source image's; 0 outside."""
    resample = SpatialResample(mode="nearest" if nearest else "bilinear", padding_mode="zeros")
    source = resample(
        MetaTensor(volume.float().unsqueeze(0), affine=entry["affine"]),
        dst_affine=entry["source_affine"],
        spatial_size=entry["source_shape"].tolist(),
    )
    return convert_to_tensor(source, track_meta=False)[0]
