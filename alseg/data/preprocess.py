"""The one deterministic preprocessing, cached on disk and shared by all rounds, runs and jobs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from filelock import FileLock
from monai.data import MetaTensor
from monai.transforms import Compose, ResampleToMatch
from monai.utils import convert_to_tensor
from torch import Tensor

from alseg.data.cases import Case, Task, check_image_headers, check_label_header
from alseg.data.volumes import read_volume
from alseg.errors import DataError
from alseg.files import TEMPORARY, read_tensors, replacing, write_tensors

CACHE_FORMAT = 2


class VolumeCache:
    """Preprocessed images and labels, each computed once per volume and transform.

    Training, evaluation and scoring read the same entries, so they cannot differ in preprocessing.
    Images and labels are separate entries: an image never needs its label, and a label is brought
    onto the grid of its preprocessed image (nearest neighbour), whatever the transforms did to it.

    Entries are plain tensors with a checksum, read back with ``weights_only=True``. An entry's name
    hashes the source files (path, size, time of change) and the transforms, so a changed file or
    setting makes a new entry. A file lock an entry lets parallel jobs fill the cache without
    working twice.

    Rejected: MONAI's PersistentDataset. Its transform hash falls back to class names, it moves
    files across file systems (not atomic), and two jobs that start together compute everything
    twice.

    Args:
        task: the data set.
        transforms: deterministic image transforms, [channels, D, H, W] MetaTensor to the same.
        fingerprint: text that changes whenever ``transforms`` change, such as their YAML.
        folder: where the entries lie.
    """

    def __init__(
        self,
        task: Task,
        transforms: Sequence[Callable[[Any], Any]],
        fingerprint: str,
        folder: str | Path,
    ) -> None:
        self.task = task
        self.transform = Compose(list(transforms))
        self.fingerprint = fingerprint
        self.folder = Path(folder)
        self.preprocessed: list[str] = []  # the images that this process computed

    def image(self, case_id: str) -> dict[str, Tensor]:
        """The preprocessed image of a case.

        Returns:
            ``image`` [channels, D, H, W] float32; ``affine`` [4, 4], its voxel-to-world matrix in
            mm; ``source_affine`` [4, 4] and ``source_shape`` [3] of the file it came from.

        Raises:
            DataError: if the file cannot be read or holds non-finite voxels.
        """
        case = self.task.cases[case_id]

        def compute() -> dict[str, Tensor]:
            entry = self._preprocess_image(case)
            self.preprocessed.append(case.id)
            return entry

        return self._entry("image", case.images, compute)

    def label(self, case_id: str, path: Path) -> Tensor:
        """A case's label on the grid of its preprocessed image: [1, D, H, W] uint8 class indices.

        Args:
            case_id: the case.
            path: the label file, as the oracle handed it out.

        Raises:
            DataError: if the file cannot be read, does not fit its image, or holds a value that is
                no class.
        """
        case = self.task.cases[case_id]
        entry = self._entry(
            "label", (path, *case.images), lambda: {"label": self._preprocess_label(case, path)}
        )
        return entry["label"]

    def derived(
        self, case_id: str, fingerprint: str, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What is computed from a preprocessed image alone, once, and kept beside it.

        Args:
            case_id: the case.
            fingerprint: text that changes whenever ``compute`` does.
            compute: from the image [channels, D, H, W] to a tensor.
        """
        kind = f"derived-{hashlib.sha256(fingerprint.encode()).hexdigest()[:8]}"
        entry = self._entry(
            kind,
            self.task.cases[case_id].images,
            lambda: {"derived": compute(self.image(case_id)["image"])},
        )
        return entry["derived"]

    def _entry(
        self, kind: str, sources: Sequence[Path], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        path = self.folder / f"{kind}-{self.key(sources)}.pt"
        entry = _read_entry(path)
        if entry is not None:
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            entry = _read_entry(path)  # another job may have been faster
            if entry is None:
                for left in self.folder.glob(f"{TEMPORARY}*-{path.name}"):
                    left.unlink(missing_ok=True)  # by a process that was killed: we hold the lock
                entry = compute()
                write_tensors(path, entry)
        return entry

    def key(self, sources: Sequence[Path]) -> str:
        """Changes whenever what is computed from some files may: their content or preprocessing."""
        parts: list[object] = [CACHE_FORMAT, self.fingerprint]
        for source in sources:
            stat = source.stat()
            parts.append((str(source), stat.st_size, stat.st_mtime_ns))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _preprocess_image(self, case: Case) -> dict[str, Tensor]:
        check_image_headers(self.task, case)
        source = read_volume(case.images)
        if not torch.isfinite(source).all():
            raise DataError(f"{case.images[0]} holds voxels that are NaN or infinite")
        source_affine, source_shape = source.affine.clone(), torch.tensor(source.shape[1:])
        try:
            image = self.transform(source)
        except Exception as error:
            raise DataError(f"preprocessing {case.images[0]} failed: {error}") from error
        if not torch.isfinite(image).all() or image.numel() == 0:
            raise DataError(f"preprocessing {case.images[0]} left no voxels, or non-finite ones")
        return {
            "image": image.as_tensor().float().contiguous(),
            "affine": image.affine.double(),
            "source_affine": source_affine.double(),
            "source_shape": source_shape,
        }

    def _preprocess_label(self, case: Case, path: Path) -> Tensor:
        check_label_header(case, path)
        label = read_volume((path,))
        n_classes = len(self.task.classes)
        values = np.unique(label.numpy())
        wrong = [float(v) for v in values if v not in range(n_classes)]
        if wrong:
            raise DataError(
                f"label {path} holds the value(s) {wrong[:5]}; allowed are 0 to {n_classes - 1} "
                f"({', '.join(self.task.classes)})"
            )
        entry = self.image(case.id)
        image = MetaTensor(entry["image"], affine=entry["affine"])
        on_grid = ResampleToMatch(mode="nearest", padding_mode="zeros")(label, image)
        return convert_to_tensor(on_grid, track_meta=False).round().to(torch.uint8).contiguous()


def _read_entry(path: Path) -> dict[str, Tensor] | None:
    """Read a cache entry; None if there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        return dict(read_tensors(path))
    except DataError as error:
        warnings.warn(f"cache entry {path} is damaged and is computed again: {error}", stacklevel=2)
        return None


def write_nifti(path: Path, volume: Tensor, affine: Tensor) -> None:
    """Write a volume [D, H, W] with its voxel-to-world matrix in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.cpu().numpy(), affine.cpu().numpy())  # type: ignore[attr-defined]
    with replacing(path) as temporary:
        nibabel.save(image, temporary)  # type: ignore[attr-defined]
