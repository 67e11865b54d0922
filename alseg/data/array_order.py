"""Volumes of files, whose first axis runs fastest, as arrays whose last axis does."""

from __future__ import annotations

from itertools import product

import numpy as np

_BLOCK = 16  # voxels along the first and the last axis: 16 lines of the processor's cache


def row_major(voxels: np.ndarray) -> np.ndarray:
    """The same volume [channels, D, H, W] as float32, with the last axis the fastest: a copy.

    NumPy writes whole rows, each voxel of which comes from another place of the file. Where those
    are a power of two apart, as in slices of 256 or 512 voxels a side, they drive one another out
    of the processor's cache before their neighbours are read. In blocks they do not.
    """
    copy = np.empty(voxels.shape, np.float32)
    _, depth, _, width = voxels.shape
    for z, x in product(range(0, depth, _BLOCK), range(0, width, _BLOCK)):
        block = np.s_[:, z : z + _BLOCK, :, x : x + _BLOCK]
        copy[block] = voxels[block]
    return copy
