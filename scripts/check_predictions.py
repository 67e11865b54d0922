"""Compare segmentations with label files, independently of alseg: nibabel and numpy only.

    python scripts/check_predictions.py SEGMENTED LABELS [CASES_CSV] [--part test]

Each SEGMENTED/CASE.nii.gz is compared with LABELS/CASE.nii.gz on their common grid, the source
image's. With a round's cases.csv, its Dice stands beside: they agree, or, with
``evaluation.space=grid``, differ by what resampling does to label and prediction.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import nibabel
import numpy as np


def dice_by_class(prediction: Path, label: Path, n_classes: int) -> list[float]:
    """2|P and L| / (|P| + |L|) of each foreground class; NaN where the label lacks it.

    Raises:
        SystemExit: if the files do not lie on one grid.
    """
    images = [nibabel.load(path) for path in (prediction, label)]  # type: ignore[attr-defined]
    one, other = (np.asarray(image.dataobj).round().astype(int) for image in images)
    same = one.shape == other.shape and np.allclose(images[0].affine, images[1].affine, atol=1e-3)
    if not same:
        raise SystemExit(f"{prediction} does not lie on the grid of {label}")
    found = []
    for value in range(1, n_classes):
        p, t = one == value, other == value
        found.append(2 * (p & t).sum() / (p.sum() + t.sum()) if t.any() else math.nan)
    return found


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("segmented", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("cases", type=Path, nargs="?", help="cases.csv of a round")
    parser.add_argument("--part", default="test")
    options = parser.parse_args()
    with (options.segmented / "cases.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    names = [key.removeprefix("voxels_") for key in table[0] if key.startswith("voxels_")]
    ids = [row["case"] for row in table if row["status"] == "done"]
    files = [f"{case_id}.nii.gz" for case_id in ids]
    found = np.array(
        [
            dice_by_class(options.segmented / file, options.labels / file, len(names) + 1)
            for file in files
        ]
    )  # [cases, classes]
    print("source grid:  ", summary(found, names))
    if options.cases:
        with options.cases.open(encoding="utf-8") as file:
            rows = {r["case_id"]: r for r in csv.DictReader(file) if r["part"] == options.part}
        if set(rows) != set(ids):
            raise SystemExit(f"{options.cases} has other {options.part} cases than were segmented")
        noted = np.array([[float(rows[i][f"dice_{n}"] or "nan") for n in names] for i in ids])
        print("as noted:     ", summary(noted, names))
        difference = np.abs(found - noted)
        print(
            f"difference: mean {np.nanmean(found - noted):+.5f}, largest of a case and class "
            f"{np.nanmax(difference):.5f}, equal to 1e-6 in {np.sum(difference < 1e-6)} of "
            f"{np.sum(~np.isnan(difference))}"
        )


def summary(dice: np.ndarray, names: list[str]) -> str:
    """Mean over cases by class, and over classes."""
    by_class = np.nanmean(dice, axis=0)
    parts = [f"{name} {value:.4f}" for name, value in zip(names, by_class, strict=True)]
    return f"mean {by_class.mean():.5f} ({', '.join(parts)}), {len(dice)} cases"


if __name__ == "__main__":
    main()
