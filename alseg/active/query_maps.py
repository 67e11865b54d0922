"""Pictures and NIfTI maps of the volumes that a round acquired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from alseg.active.figures import draw_query
from alseg.core.units import Unit, region_from_text
from alseg.data.annotation import Annotation
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import annotated_label
from alseg.data.source_grid import classes_on_source_grid, values_on_source_grid
from alseg.data.volumes import write_nifti
from alseg.run.folder import MAPS_FOLDER, PICTURES_FOLDER, PROPOSALS_FOLDER, UNCERTAINTY_FOLDER
from alseg.scoring.scorer import Scoring
from alseg.training.metrics import hard_labels


class QueryMaps(pl.LightningModule):
    """Draws queries of a round, with their labels if these have been revealed by then.

    The statistics of the few chosen volumes are computed again rather than kept for the whole pool;
    the masks depend on names, so they are the ones that were scored.

    Args:
        network: the round's.
        scoring: what the query was chosen by.
        cache: gives the volumes.
        queries: rows of queries.csv.
        labels: what may be read of the labels of those that are annotated.
        n_pictures: how many of them to draw, from rank 1.
        save_maps: also write the prediction and the uncertainty of each as NIfTI.
        folder: the round's folder; pictures go to ``pictures/``, maps to ``maps/``.
        request: a request folder, for which the predictions are proposals; None for none.
    """

    def __init__(
        self,
        network: nn.Module,
        scoring: Scoring,
        cache: VolumeCache,
        queries: Sequence[Mapping[str, Any]],
        labels: Mapping[str, Annotation],
        n_pictures: int,
        save_maps: bool,
        folder: Path,
        request: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.scoring = scoring
        self.cache = cache
        self.rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in queries:
            self.rows.setdefault(row["case_id"], []).append(row)
        self.labels = labels
        self.n_pictures = n_pictures
        self.save_maps = save_maps
        self.folder = folder
        self.request = request

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        """Look at one query again, and draw it; returns its case id."""
        (case_id,) = batch["case_id"]
        drawn = [row for row in self.rows[case_id] if row["rank"] <= self.n_pictures]
        reads_labels = self.scoring.strategy.reads_labels
        label = seen = None
        if case_id in self.labels and (drawn or reads_labels):  # not hidden any more
            label = annotated_label(self.cache, case_id, self.labels[case_id])[0]  # [D, H, W]
        if label is not None and reads_labels:
            seen = label.to(self.device)
        statistics = self.scoring.statistics(self.network, batch["image"], case_id, seen)
        prediction = hard_labels(statistics.mean.unsqueeze(0))[0, 0].cpu()  # [D, H, W]
        uncertainty = self.scoring.strategy.uncertainty_map(statistics).float().cpu()
        for row in drawn:
            self.draw(row, prediction, uncertainty, label)
        if self.save_maps or self.request is not None:
            self.write_maps(case_id, statistics.mean, uncertainty)
        return [case_id]

    def draw(
        self,
        row: Mapping[str, Any],
        prediction: Tensor,
        uncertainty: Tensor,
        label: Tensor | None,
    ) -> None:
        """Draw a unit of the query; all volumes are [D, H, W]."""
        case_id, where = row["case_id"], row.get("region")
        entry, task = self.cache.image(case_id), self.cache.task
        region, box, across = None, None, None
        if where is not None:
            region, grid = region_from_text(where), self.cache.grid(case_id)
            box, across = grid.box(region), grid.face(region)
        score = "" if row["score"] is None else f" {row['score']:.3g}"
        chosen_by = f"{self.scoring.strategy.name}{score}"
        draw_query(
            self.folder / PICTURES_FOLDER / f"{row['rank']:02d}_{case_id}.png",
            image=entry["image"][0],
            prediction=prediction,
            uncertainty=uncertainty,
            label=label,
            affine=entry["affine"],
            classes=task.foreground,
            not_annotated=[task.classes[value] for value in task.not_annotated(case_id)],
            region=box,
            across=across,
            title=(
                f"{Unit(case_id, region).name}: query {row['rank']} of round {row['round']}, "
                f"{chosen_by}"
            ),
        )

    def write_maps(self, case_id: str, probabilities: Tensor, uncertainty: Tensor) -> None:
        """Write what a query's classes [C, D, H, W] and uncertainty [D, H, W] are in its image."""
        entry, source = self.cache.image(case_id), self.cache.task.cases[case_id].images[0]
        classes = classes_on_source_grid(probabilities, entry)
        values = values_on_source_grid(uncertainty, entry)
        if self.save_maps:
            folder = self.folder / MAPS_FOLDER
            write_nifti(folder / f"{case_id}_prediction.nii.gz", classes, source)
            write_nifti(folder / f"{case_id}_uncertainty.nii.gz", values, source)
        if self.request is not None:
            write_nifti(self.request / PROPOSALS_FOLDER / f"{case_id}.nii.gz", classes, source)
            write_nifti(self.request / UNCERTAINTY_FOLDER / f"{case_id}.nii.gz", values, source)
