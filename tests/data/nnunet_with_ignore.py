"""An nnU-Net v2 raw data set with an ignore label, written with nibabel and json and nothing else.

    python tests/data/nnunet_with_ignore.py FOLDER

Cases of two noisy balls, of which slabs were annotated and the rest has the highest label value.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (20, 18, 16)
IGNORE = 3


def write(root, n_cases=8, ignored=True, declared=True, seed=0):
    """Write a data set; ``declared`` puts the ignore label into dataset.json."""
    rng = np.random.default_rng(seed)
    axes = np.indices(SHAPE)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(n_cases):
        label = np.zeros(SHAPE, np.uint8)
        for value, radius in ((1, 5), (2, 3)):
            centre = rng.integers(5, 12, size=(3, 1, 1, 1))
            label[((axes - centre) ** 2).sum(axis=0) < radius**2] = value
        image = (label + rng.normal(0, 0.3, SHAPE)).astype(np.float32)
        if ignored and number % 3 != 2:  # every third case is whole
            hidden = np.ones(SHAPE, bool)
            hidden[:, :, 4:12] = False
            label[hidden] = IGNORE
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        name = f"case_{number:03d}"
        nibabel.save(nibabel.Nifti1Image(image, affine), root / f"imagesTr/{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), root / f"labelsTr/{name}.nii.gz")
    labels = {"background": 0, "large": 1, "small": 2}
    content = {
        "channel_names": {"0": "MRI"},
        "labels": labels | ({"ignore": IGNORE} if declared else {}),
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


if __name__ == "__main__":
    write(Path(sys.argv[1]))
