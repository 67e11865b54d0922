"""Data sets whose labels have been moved away, for an annotator to bring back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path


def move_labels_away(
    source: Path, target: Path, hidden: Collection[str], only: Collection[str] | None = None
) -> tuple[Path, Path]:
    """Copy an MSD data set without the labels of some cases.

    Args:
        source: the data set; files are copied.
        target: where the copy goes, and the labels beside it.
        hidden: the cases that have no label in the copy.
        only: the cases to copy; None for all.

    Returns:
        The copy, and the folder of all labels.
    """
    copy, labels = target / "data", target / "labels"
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    labels.mkdir(parents=True)
    training, test = [], []
    for entry in content["training"]:
        case_id = Path(entry["image"]).name.removesuffix(".nii.gz")
        if only is not None and case_id not in only:
            continue
        for name in (entry["image"], entry["label"]):
            if name == entry["label"]:
                shutil.copyfile(source / name, labels / f"{case_id}.nii.gz")
                if case_id in hidden:
                    continue
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
        if case_id in hidden:
            test.append(entry["image"])
        else:
            training.append(entry)
    content |= {"training": training, "test": test}
    content |= {"numTraining": len(training), "numTest": len(test)}
    (copy / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return copy, labels
