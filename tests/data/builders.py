"""Data sets whose volumes are empty files: for what is decided by names only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def touch_msd(root: Path, names: Sequence[str], **changes: object) -> Path:
    for name in names:
        touch(root / "imagesTr" / f"{name}.nii.gz")
        touch(root / "labelsTr" / f"{name}.nii.gz")
    content = {
        "name": "Blobs",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "blob"},
        "numTraining": len(names),
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
    }
    write_json(root / "dataset.json", content | changes)
    return root


def touch_nnunet(
    root: Path, names: Sequence[str], channels: Sequence[str] = ("CT",), **changes: object
) -> Path:
    for name in names:
        for index in range(len(channels)):
            touch(root / "imagesTr" / f"{name}_{index:04d}.nii.gz")
        touch(root / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "blob": 1},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    write_json(root / "dataset.json", content | changes)
    return root
