"""The one deterministic preprocessing, cached on disk and shared by all rounds, runs and jobs."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from threading import Lock
from typing import Any, TypeGuard

import monai
import numpy as np
import torch
from cachetools import LRUCache
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, ResampleToMatch, Spacing
from monai.utils import convert_to_tensor
from torch import Tensor

from alseg.core.counts import by
from alseg.core.errors import DataError
from alseg.core.units import IGNORED, Region
from alseg.data.annotation import label_dtype, partial_dtype
from alseg.data.findings import Finding, in_mm, warning
from alseg.data.headers import check_image_headers, check_label_header
from alseg.data.itk import data_file
from alseg.data.labels import read_label
from alseg.data.regions import Grid
from alseg.data.task import Case, Task
from alseg.data.volumes import MAX_GIB, read_volume
from alseg.strategies.statistics import class_dtype
from alseg.system.files import TEMPORARY, locked, read_tensors, write_tensors

CACHE_FORMAT = 3
QUANTILES = (0.05, 0.5, 0.95)  # of the source's intensities
_N_BLOCKS, _BLOCK = 16, 2**16  # bytes: what is read of a file to know it again
_N_SAMPLED = 10**6  # voxels that quantiles are taken of
_IN_MEMORY = 2**28  # bytes of entries that a process keeps: all of a data set of small volumes
_ALIGNMENT = 64  # bytes: where tensors of such an entry begin


def _n_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take one after another."""
    return sum(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)


class _Kept:
    """A copy of an entry, in pages of its own beside the heap.

    Nothing of it is on the heap, not even the small blocks that a tensor has beside its voxels:
    what stays there between activations that come and go leaves gaps that they no longer fit.
    """

    def __init__(self, entry: Mapping[str, Tensor]) -> None:
        self.n_bytes = _n_bytes(entry.values())
        self._tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        start = 0
        for name, tensor in entry.items():
            self._tensors[name] = tensor.dtype, tuple(tensor.shape), start
            start += _n_bytes([tensor])
        self._pages = mmap(-1, max(1, self.n_bytes), access=ACCESS_COPY)
        for name, tensor in entry.items():
            self._view(name).copy_(tensor)

    def entry(self) -> dict[str, Tensor]:
        """The entry as it was, to be changed at will."""
        return {name: self._view(name).clone() for name in self._tensors}

    def _view(self, name: str) -> Tensor:
        dtype, shape, start = self._tensors[name]
        n_values = math.prod(shape)
        if n_values == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._pages, dtype=dtype, count=n_values, offset=start).view(shape)


_recent: LRUCache[tuple[object, ...], _Kept] = LRUCache(_IN_MEMORY, lambda kept: kept.n_bytes)
_recent_lock = Lock()


class VolumeCache:
    """Preprocessed images and labels, each computed once per volume and transform.

    Training, evaluation and scoring read the same entries, so they cannot differ in preprocessing.
    Images and labels are separate entries: an image never needs its label, and a label is brought
    onto the grid of its preprocessed image (nearest neighbour), whatever the transforms did to it.

    Entries are plain tensors with a checksum, read back with ``weights_only=True``. An entry's name
    hashes all that decides what it holds and whether it is valid: the source files (path, size,
    time of change, a sample of their content), the transforms, MONAI's version, the number of
    channels or classes. So a changed file or setting makes a new entry. An entry repeats its name;
    one that holds something else when it is read is computed again. A file lock an entry lets
    parallel jobs fill the cache without working twice.

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
        self.transforms = list(transforms)
        self.fingerprint = fingerprint
        self.folder = Path(folder)
        self.preprocessed: list[str] = []  # the images that this process computed
        self._grids: dict[str, tuple[int, ...]] = {}  # by the entry of an image: its shape
        self._in_source: dict[str, Grid] = {}  # by the same: where it lies in the file

    def image(self, case_id: str) -> dict[str, Tensor]:
        """The preprocessed image of a case.

        Returns:
            ``image`` [channels, D, H, W] float32; ``affine`` [4, 4], its voxel-to-world matrix in
            mm; ``source_affine`` [4, 4], ``source_shape`` [3] and ``source_quantiles`` [channels,
            3] (intensities at ``QUANTILES``) of the file it came from.

        Raises:
            DataError: if the file cannot be read or holds non-finite voxels.
        """
        case = self.task.cases[case_id]
        n_channels = len(self.task.channels)

        def compute() -> dict[str, Tensor]:
            entry = self.preprocess(case)
            self.preprocessed.append(case.id)
            return entry

        def is_intact(entry: Mapping[str, Any]) -> bool:
            kinds = {
                "image": (torch.float32, (n_channels, None, None, None)),
                "affine": (torch.float64, (4, 4)),
                "source_affine": (torch.float64, (4, 4)),
                "source_shape": (torch.int64, (3,)),
                "source_quantiles": (torch.float64, (n_channels, len(QUANTILES))),
            }
            return all(_is(entry.get(name), *kind) for name, kind in kinds.items())

        key = self.key(case.images)
        entry = self._entry(f"image-{key}", compute, is_intact)
        self._grids[key] = tuple(entry["image"].shape[1:])
        return entry

    def grid(self, case_id: str) -> Grid:
        """How the preprocessed image of a case lies in its file.

        Raises:
            ConfigError: if boxes of one are no boxes of the other.
        """
        key = self.key(self.task.cases[case_id].images)
        if key not in self._in_source:
            self._in_source[key] = Grid.of(self.image(case_id))
        return self._in_source[key]

    def label(self, case_id: str, path: Path, regions: tuple[Region, ...] | None = None) -> Tensor:
        """A case's label on the grid of its preprocessed image: class indices [1, D, H, W].

        A voxel takes the class of the source voxel that its centre lies in; it is ``IGNORED`` where
        that one was not annotated. A label without such voxels has the type ``class_dtype``, one
        with them a signed type.

        Args:
            case_id: the case.
            path: the label file, as the oracle handed it out.
            regions: what was annotated of it; None for all. Nothing else of the file matters.

        Raises:
            DataError: if the file cannot be read, does not fit its image, or holds a value that is
                no class.
        """
        return self._label_entry(case_id, path, regions)["label"]

    def classes_in_file(self, case_id: str, path: Path) -> tuple[int, ...]:
        """The classes in a label file, whatever preprocessing leaves of them."""
        values = self._label_entry(case_id, path)["classes_in_file"].tolist()
        return tuple(value for value in values if value >= 0)

    def is_annotated(self, path: Path) -> bool:
        """Whether a label file has a voxel that is not ignored; nothing else of it is told.

        Raises:
            DataError: if the file cannot be read.
        """
        ignored = self.task.ignore_value
        if ignored is None:
            return True

        def compute() -> dict[str, Tensor]:
            return {"annotated": (read_volume((path,)).as_tensor() != ignored).any()[None]}

        entry = self._entry(
            f"annotated-{self.key((path,), ignored)}",
            compute,
            lambda entry: _is(entry.get("annotated"), torch.bool, (1,)),
        )
        return bool(entry["annotated"])

    def _label_entry(
        self, case_id: str, path: Path, regions: tuple[Region, ...] | None = None
    ) -> dict[str, Tensor]:
        case = self.task.cases[case_id]
        n_classes = len(self.task.classes)
        is_partial = regions is not None or self.task.ignore_value is not None
        dtypes = [class_dtype(n_classes), *([partial_dtype(n_classes)] if is_partial else [])]

        def is_intact(entry: Mapping[str, Any]) -> bool:
            label, values = entry.get("label"), entry.get("classes_in_file")
            lowest = IGNORED if is_partial else 0
            return (
                isinstance(label, Tensor)
                and any(_is(label, dtype, (1, *self._grid(case))) for dtype in dtypes)
                and _is(values, torch.int64, (None,))
                and all(
                    lowest <= int(v.min()) and int(v.max()) < n_classes for v in (label, values)
                )
            )

        further: list[object] = [self.task.ignore_value, regions] if is_partial else []
        if hidden := self.task.not_annotated(case_id):
            further.append(hidden)
        key = self.key((path, *case.images), n_classes, *further)
        return self._entry(
            f"label-{key}", lambda: self._preprocess_label(case, path, regions), is_intact
        )

    def derived(
        self, case_id: str, fingerprint: str, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What is computed only from a preprocessed image, once, and kept beside it.

        Args:
            case_id: the case.
            fingerprint: text that changes whenever ``compute`` does.
            compute: from the image [channels, D, H, W] to a tensor.
        """
        kind = f"derived-{hashlib.sha256(fingerprint.encode()).hexdigest()[:8]}"
        entry = self._entry(
            f"{kind}-{self.key(self.task.cases[case_id].images)}",
            lambda: {"derived": compute(self.image(case_id)["image"])},
            lambda entry: isinstance(entry.get("derived"), Tensor),
        )
        return entry["derived"]

    def _grid(self, case: Case) -> tuple[int, ...]:
        """The shape of a preprocessed image."""
        key = self.key(case.images)
        if key not in self._grids:
            self.image(case.id)
        return self._grids[key]

    def _entry(
        self,
        name: str,
        compute: Callable[[], dict[str, Tensor]],
        is_intact: Callable[[Mapping[str, Any]], bool],
    ) -> dict[str, Tensor]:
        path = self.folder / f"{name}.pt"
        entry = _read_entry(path, is_intact)
        if entry is not None:
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            entry = _read_entry(path, is_intact)  # another job may have been faster
            if entry is None:
                for left in self.folder.glob(f"{TEMPORARY}*-{path.name}"):
                    left.unlink(missing_ok=True)  # by a process that was killed: we hold the lock
                entry = compute()
                write_tensors(path, {"name": name, **entry})
        return entry

    def key(self, sources: Sequence[Path], *further: object) -> str:
        """Changes whenever what is computed from some files may: their content or preprocessing.

        Args:
            sources: the files.
            further: what else it depends on.
        """
        n_channels = len(self.task.channels)
        parts: list[object] = [CACHE_FORMAT, monai.__version__, self.fingerprint, n_channels]
        parts += further
        beside = [file for file in map(data_file, sources) if file is not None]
        for source in (*sources, *beside):
            stat = source.stat()
            times = stat.st_mtime_ns, stat.st_ctime_ns
            sample = _sample_of(source, stat.st_size, *times, stat.st_ino)
            parts.append((str(source), stat.st_size, stat.st_mtime_ns, sample))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def preprocess(self, case: Case) -> dict[str, Tensor]:
        """Preprocess the image of a case, and keep it nowhere; as ``image`` otherwise."""
        check_image_headers(self.task, case)
        source = read_volume(case.images)
        if not torch.isfinite(source).all():
            raise DataError(f"{case.images[0]} holds voxels that are NaN or infinite")
        source_affine, source_shape = source.affine.clone(), torch.tensor(source.shape[1:])
        quantiles = [_quantiles(channel) for channel in source.as_tensor()]
        image = source
        for transform in self.transforms:
            name = type(transform).__name__
            try:
                _check_grid(case, transform, image)
                image = Compose([transform])(image)
            except DataError:
                raise
            except Exception as error:  # MONAI's and anybody's transforms let all kinds through
                raise DataError(
                    f"preprocessing {case.images[0]} failed in {name}: {reason_of(error)}"
                ) from error
        if not torch.isfinite(image).all() or image.numel() == 0:
            raise DataError(f"preprocessing {case.images[0]} left no voxels, or non-finite ones")
        return {
            "image": image.as_tensor().float().contiguous(),
            "affine": image.affine.double(),
            "source_affine": source_affine.double(),
            "source_shape": source_shape,
            "source_quantiles": torch.tensor(quantiles, dtype=torch.float64),
        }

    def _preprocess_label(
        self, case: Case, path: Path, regions: tuple[Region, ...] | None
    ) -> dict[str, Tensor]:
        label, values = self._read_label(case, path, regions)
        entry = self.image(case.id)
        image = MetaTensor(entry["image"], affine=entry["affine"])
        # of a partly annotated image nobody has annotated what lies around it either
        lowest = IGNORED if bool((label < 0).any()) else 0
        resample = ResampleToMatch(mode="nearest", padding_mode="zeros")
        on_grid = convert_to_tensor(resample(label - lowest, image), track_meta=False)
        on_grid = on_grid.round() + lowest
        dtype = label_dtype(on_grid, len(self.task.classes))
        return {
            "label": on_grid.to(dtype).contiguous(),
            "classes_in_file": torch.from_numpy(values),
        }

    def source_label(
        self, case_id: str, path: Path, regions: tuple[Region, ...] | None = None
    ) -> Tensor:
        """A case's label as it is in its file, which lies on the grid of the image's: [1, D, H, W].

        Nothing of it is kept. Arguments, types and errors are those of ``label``.
        """
        label, _ = self._read_label(self.task.cases[case_id], path, regions)
        plain = convert_to_tensor(label, track_meta=False)
        return plain.to(label_dtype(plain, len(self.task.classes)))

    def _read_label(
        self, case: Case, path: Path, regions: tuple[Region, ...] | None
    ) -> tuple[MetaTensor, np.ndarray]:
        """As ``read_label``, of a case whose label is checked against its image and data set."""
        check_label_header(case, path)
        label, values = read_label(self.task, path, regions)
        hidden = [v for v in self.task.not_annotated(case.id) if v in values]
        if hidden:
            raise DataError(
                f"label {path} holds the class {self.task.classes[hidden[0]]}, but dataset.json "
                f"says that it was not annotated in {case.id} ('annotated_classes')"
            )
        return label, values


def axis_findings(transforms: Sequence[Callable[[Any], Any]]) -> list[Finding]:
    """A warning of transforms that resample to unequal edges along axes that files choose."""
    kinds = [type(transform) for transform in transforms]
    n_oriented = kinds.index(Orientation) if Orientation in kinds else len(kinds)
    return [
        warning(
            "axes",
            f"data.preprocess resamples to {in_mm(transform.pixdim)} before it re-orients, so that "
            "these edges follow the axes of each file; put Orientation first",
        )
        for transform in transforms[:n_oriented]
        if isinstance(transform, Spacing) and np.ptp(transform.pixdim) > 0
    ]


def reason_of(error: BaseException) -> BaseException:
    """What went wrong in a transform: MONAI's own error only gives the transform's address."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_grid(case: Case, transform: Callable[[Any], Any], image: MetaTensor) -> None:
    """Refuse a new grid that cannot be meant, before its memory is taken.

    Raises:
        DataError: if ``transform`` resamples to more than ``MAX_GIB``, or an axis to one voxel.
    """
    if not isinstance(transform, Spacing):
        return
    planned = transform(image, lazy=True)  # no voxel is computed
    assert isinstance(planned, MetaTensor)
    before, after = tuple(image.shape[1:]), tuple(planned.peek_pending_shape())
    gib = 4 * image.shape[0] * math.prod(after) / 2**30
    if gib <= MAX_GIB and not any(new < 2 <= old for old, new in zip(before, after, strict=True)):
        return
    edges = image.affine[:3, :3].norm(dim=0).tolist()
    raise DataError(
        f"{case.images[0]} has {by(before)} voxels of {in_mm(edges)}, which Spacing turns into "
        f"{by(after)} ({gib:.3g} GiB); the unit of its header or the spacing in data.preprocess "
        "must be wrong"
    )


def _quantiles(channel: Tensor) -> list[float]:
    """Intensities at ``QUANTILES``, of evenly spaced voxels."""
    voxels = channel.flatten()[:: -(-channel.numel() // _N_SAMPLED)]
    return np.quantile(voxels.numpy(), QUANTILES).tolist()


def content_of(path: Path) -> str:
    """What changes with the content of an image file, and with that of a data file beside it."""
    beside = data_file(path)
    parts = []
    for file in [path] if beside is None else [path, beside]:
        stat = file.stat()
        state = stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        parts.append(f"{stat.st_size} {_sample_of(file, stat.st_size, *state)}")
    return " ".join(parts)


@lru_cache(maxsize=2**16)
def _sample_of(source: Path, size: int, *state: int) -> str:
    """A hash of a file's beginning, its end and blocks between; of all of it, up to 1 MiB.

    Size and time of change can stay the same when a file is replaced. The end of a gzip holds the
    checksum of all that is in it.

    Args:
        source: the file.
        size: in bytes.
        state: changes with the file, so that a process reads it again then and only then.
    """
    digest = hashlib.blake2b(digest_size=16)
    with source.open("rb") as file:
        if size <= _N_BLOCKS * _BLOCK:
            digest.update(file.read())
        else:
            for index in range(_N_BLOCKS):
                file.seek((size - _BLOCK) * index // (_N_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _is(value: Any, dtype: torch.dtype, shape: Sequence[int | None]) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of a type and a shape; None stands for any length."""
    return (
        isinstance(value, Tensor)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    )


def _read_entry(
    path: Path, is_intact: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Tensor] | None:
    """Read a cache entry; None if there is none, or it is damaged or another one.

    One that was read lately and has not changed on the disk since comes from memory, as a copy.
    """
    if not path.is_file():
        return None
    stat = path.stat()
    version = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    with _recent_lock:
        recent = _recent.get(version)
    if recent is None:
        entry = _read_from_disk(path, is_intact)
        if entry is not None and _n_bytes(entry.values()) <= _IN_MEMORY:
            kept = _Kept(entry)
            with _recent_lock:
                _recent[version] = kept
        return entry
    return recent.entry()


def _read_from_disk(
    path: Path, is_intact: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Tensor] | None:
    try:
        entry = read_tensors(path)
        if not isinstance(entry, dict) or entry.pop("name", None) != path.stem:
            raise DataError("it is the entry of something else")
        if not is_intact(entry):
            raise DataError("it does not hold what it should")
    except DataError as error:
        warnings.warn(f"cache entry {path} is damaged and is computed again: {error}", stacklevel=2)
        return None
    return entry
