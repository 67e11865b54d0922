"""How large regions are in the files of a data set, known from headers before a run begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from alseg.core.errors import ConfigError
from alseg.data.findings import listed
from alseg.data.regions import UnitShape
from alseg.data.task import Task
from alseg.data.volumes import Header, read_header

MOST_ROUNDING = 1.5  # times the edge that was asked for


def region_sizes(shape: UnitShape, task: Task, case_ids: Sequence[str]) -> str:
    """How many voxels of the files a region has in some cases, in a sentence.

    Args:
        shape: of a region.
        task: the data set.
        case_ids: at least one of its cases.

    Raises:
        ConfigError: if ``pool.patch_mm`` is so far below the voxels of a case that rounding changes
            it by more than half.
        DataError: if a header cannot be read.
    """
    headers = {case_id: read_header(task.cases[case_id].images[0]) for case_id in case_ids}
    _check_rounding(shape, headers)
    if shape.unit == "slice":
        axes = Counter(shape.across(header.affine) for header in headers.values())
        found = [f"axis {axis} of the files ({n} volumes)" for axis, n in axes.most_common()]
        return f"slices lie across {', '.join(found)}"
    whole = np.array([header.shape[:3] for header in headers.values()])
    sizes = np.array([shape.size(header.shape[:3], header.affine) for header in headers.values()])
    edges = " x ".join(_range(along_axis) for along_axis in sizes.T)
    n_whole = int((sizes == whole).all(axis=1).sum())
    small = f", of which {n_whole} are no larger than a patch" if n_whole else ""
    return f"patches have {edges} voxels of the files ({len(headers)} volumes{small})"


def _check_rounding(shape: UnitShape, headers: Mapping[str, Header]) -> None:
    if shape.patch_mm is None:
        return
    for axis, edge in enumerate(shape.edges_mm):
        spacings = {case_id: float(h.spacing_mm[axis]) for case_id, h in headers.items()}
        beyond = [i for i, mm in spacings.items() if mm > MOST_ROUNDING * edge]
        if beyond:
            largest = max(spacings.values())
            raise ConfigError(
                f"pool.patch_mm is {edge:g} along axis {axis} of the files, but voxels measure up "
                f"to {largest:.4g} mm there ({listed(beyond)}), and a patch has at least one; set "
                f"{largest:.4g} or more for that axis, or use pool.patch_voxels"
            )


def _range(edges: np.ndarray) -> str:
    low, high = int(edges.min()), int(edges.max())
    return str(low) if low == high else f"{low}-{high}"
