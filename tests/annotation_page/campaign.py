"""A request for tests: small volumes on awkward grids, some of them with proposals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from alseg.annotation_page.desk import Desk
from alseg.annotation_page.grid import Grid, drawing_for_page
from alseg.core.units import Query, whole
from alseg.data.formats.msd import read_msd
from alseg.data.task import Task
from alseg.data.volumes import read_header
from alseg.oracles.person import PersonOracle
from alseg.run.requests import read_requests
from tests.conftest import write_msd
from tests.oracles.unlabelled import move_labels_away

SHAPE = (9, 7, 5)
CASES = [f"case_{i:02d}" for i in range(5)]
ASKED = CASES[1:]  # the first one has a label in the data set


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """A rotation by three angles in degrees, [3, 3]."""
    (a, b, c), found = np.deg2rad([x, y, z]), np.eye(3)
    for axis, angle in enumerate((a, b, c)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        found = turn @ found
    return found


def affine(directions: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = (-31.5, 12.25, 100.0)
    return matrix


GRIDS = {
    "plain": affine(np.eye(3), (1, 1, 1)),
    "anisotropic": affine(np.eye(3), (0.7, 0.8, 5.0)),
    "left-handed": affine(np.diag([-1.0, 1.0, 1.0]), (1.0, 1.5, 2.0)),
    "LPS": affine(np.diag([-1.0, -1.0, 1.0]), (1.0, 1.5, 2.0)),
    "oblique": affine(rotation(20, -35, 50), (1.0, 1.5, 2.0)),
    "permuted, oblique, left-handed": affine(
        rotation(10, 12, -8)[:, [2, 0, 1]] * [-1, 1, 1], (3.0, 0.9, 0.6)
    ),
}


@dataclass
class Campaign:
    """A desk, and what it works on."""

    task: Task
    oracle: PersonOracle
    desk: Desk
    request: str = "round_01"

    @property
    def folder(self) -> Path:
        return self.oracle.folder / "requests" / self.request

    @property
    def query(self) -> Query:
        return read_requests(self.oracle.folder)[-1].query

    def grid(self, case_id: str) -> Grid:
        return Grid.of(read_header(self.task.cases[case_id].images[0]))

    def drawing(self, case_id: str, classes: np.ndarray) -> bytes:
        return drawing_for_page(classes, self.grid(case_id))

    def label(self, case_id: str) -> nibabel.Nifti1Image:
        return nibabel.load(self.folder / "labels/final" / f"{case_id}.nii.gz")


def drawn(seed: int, n_classes: int = 2) -> np.ndarray:
    """Classes, each voxel at random: no flip or permutation leaves it as it is."""
    return np.random.default_rng(seed).integers(0, n_classes, SHAPE).astype(np.uint8)


def proposed(seed: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[1 : 3 + seed % 3, 1:4, 1:3] = 1
    return label


def lay_out_campaign(folder: Path) -> Campaign:
    """Five volumes, of which four are asked for, with proposals and uncertainty maps."""
    images = [np.random.default_rng(i).normal(size=SHAPE) for i in range(5)]
    affines = [*GRIDS.values()][1:]
    root = write_msd(folder / "whole", images, [drawn(i) for i in range(5)], affines=affines)
    copy, _ = move_labels_away(root, folder / "campaign", ASKED)
    task = read_msd(copy)
    oracle = PersonOracle(task, folder / "run", settle_seconds=0)

    def propose(units: Query, to: Path) -> None:
        for unit in units:
            grid = nibabel.load(task.cases[unit.case_id].images[0]).affine
            label = proposed(CASES.index(unit.case_id))
            for part in ("labels/original", "uncertainty"):
                nibabel.save(nibabel.Nifti1Image(label, grid), to / part / f"{unit.case_id}.nii.gz")

    oracle.request("round_01", whole(ASKED), {}, propose)
    return Campaign(task, oracle, Desk(task, oracle.folder, claim_minutes=30))
