"""Deterministic abdominal CT phantoms, written once as a Medical Segmentation Decathlon data set.

The task is liver (1) and liver tumour (2) on a drawn abdomen: skin, fat, muscle, ribs, spine, lung
bases, heart, stomach with a gas-fluid level, bowel, kidneys, gallbladder, great vessels, and a
spleen of about the liver's Hounsfield units, so that a network has to learn position and shape. A
stated share of the cases is *hard*: many small faint tumours, strong noise, an odd liver.

How a case comes about::

    rng([seed, index]) -> sample_recipe -> CaseRecipe -> render_case -> int16 image, uint8 label
                                                      -> re-oriented NIfTI pair

Anatomy lives in millimetres in the patient's RAS frame (x to the right, y to the front, z to the
head; the origin is the middle of the volume). Organs are signed fields, negative inside, roughly in
mm. Random fields live on a lattice in mm, so a case shows the same patient at every voxel size.

How difficult the task is depends on the parameters; docs/results.md has what was measured.

Rejected: spheres in noise (`monai.data.create_test_image_3d`), which have neither a left and a
right, nor a distractor, nor hard cases that an uncertainty could find.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as connected_parts

from alseg.system.console import track
from alseg.system.files import locked

GENERATOR_VERSION = 2  # part of the folder's hash: raise it whenever any voxel may change
FIELD_OF_VIEW_MM = (320.0, 320.0, 250.0)
ORIENTATIONS = ("RAS", "LPS", "LAS", "LPI", "PIR", "ASL")
SMALLEST_SIZE = 24
BACKGROUND, LIVER, TUMOUR = 0, 1, 2

_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0
_LATTICE_REACH_MM = 200.0  # random fields are frozen beyond it, outside the body

Field = npt.NDArray[np.float32]
Vector = tuple[float, float, float]
Points = tuple[Field, Field, Field]
LiverShape = Literal["usual", "large_left_lobe", "resected", "deformed"]


@dataclass(frozen=True)
class Tumour:
    """One tumour: it sits at the liver point nearest to `site_mm` that is deep enough."""

    site_mm: Vector
    radii_mm: Vector
    contrast_hu: float  # tumour minus liver, before partial volume


@dataclass(frozen=True)
class CaseRecipe:
    """What is drawn for a case except its random fields and noise; lengths in mm, RAS axes."""

    hard: bool
    shape: tuple[int, int, int]  # voxels along R, A, S, before re-orientation
    spacing_mm: Vector
    origin_mm: Vector  # world position of the volume's middle
    orientation: str
    body_scale: Vector
    body_shift_mm: Vector
    fat_mm: float
    liver_shape: LiverShape
    liver_scale: float
    liver_roughness_mm: float
    cut_angle: float  # radians; direction of a resection
    liver_hu: float
    spleen_hu: float
    spleen_scale: float
    kidney_hu: float
    bowel_hu: float
    noise_hu: float
    tumours: tuple[Tumour, ...]


def is_hard(index: int, *, hard_fraction: float, seed: int) -> bool:
    """Say whether case `index` is hard, whatever the number of cases.

    The rule is the Kronecker sequence (offset(seed) + index * golden ratio) mod 1 < hard_fraction.
    Independent draws would leave the number of hard cases to chance (48 cases at 0.25: 12 +- 3);
    this sequence keeps it within about one of n * hard_fraction in every run of n cases, without
    the period that "every fourth case" has.
    """
    offset = np.random.default_rng([seed, 0, 1]).random()  # [seed, 0] is the stream of case 0
    return bool((offset + index * _GOLDEN_RATIO) % 1.0 < hard_fraction)


def sample_recipe(
    rng: np.random.Generator,
    *,
    hard: bool,
    size: tuple[int, int, int],
    spacing_mm: Vector,
    noise_hu: float,
    tumour_rate: float,
    tumour_scale: float = 1.0,
) -> CaseRecipe:
    """Draw one patient and one scan of it.

    Args:
        rng: the case's own stream.
        hard: whether to draw a hard case.
        size: nominal voxels along R, A, S; every axis varies by 15%.
        spacing_mm: nominal spacing along R, A, S; every axis varies by 5%.
        noise_hu: nominal standard deviation of the noise; hard cases have 2 to 2.5 times as much.
        tumour_rate: probability that a plain case has tumours; a hard case always has.
        tumour_scale: factor of the tumours' radii.
    """

    def vector(low: float, high: float) -> Vector:
        a, b, c = rng.uniform(low, high, 3).tolist()
        return a, b, c

    nx, ny, nz = (round(n * f) for n, f in zip(size, vector(0.85, 1.15), strict=True))
    sx, sy, sz = (s * f for s, f in zip(spacing_mm, vector(0.95, 1.05), strict=True))
    liver_hu = rng.uniform(68.0, 88.0) if hard else rng.uniform(85.0, 115.0)
    if hard:
        n_tumours = int(rng.integers(3, 8))
    else:
        n_tumours = int(rng.integers(1, 3)) if rng.random() < tumour_rate else 0
    odd_shapes: tuple[LiverShape, ...] = ("large_left_lobe", "resected", "deformed")
    return CaseRecipe(
        hard=hard,
        shape=(nx, ny, nz),
        spacing_mm=(sx, sy, sz),
        origin_mm=vector(-60.0, 60.0),
        orientation=ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))],
        body_scale=vector(1.0, 1.14),
        body_shift_mm=vector(-7.0, 7.0),
        fat_mm=rng.uniform(7.0, 24.0),
        liver_shape=odd_shapes[int(rng.integers(3))] if hard else "usual",
        liver_scale=rng.uniform(0.9, 1.08),
        liver_roughness_mm=rng.uniform(2.0, 3.5),
        cut_angle=rng.uniform(-0.6, 0.9),
        liver_hu=liver_hu,
        spleen_hu=liver_hu + (rng.uniform(-6.0, 6.0) if hard else rng.uniform(-10.0, 15.0)),
        spleen_scale=rng.uniform(1.0, 1.35) if hard else rng.uniform(0.85, 1.2),
        kidney_hu=rng.uniform(110.0, 150.0),
        bowel_hu=rng.choice([15.0, 35.0, 90.0, 200.0]).item(),
        noise_hu=noise_hu * (rng.uniform(2.0, 2.5) if hard else rng.uniform(0.8, 1.2)),
        tumours=tuple(_sample_tumour(rng, hard=hard, scale=tumour_scale) for _ in range(n_tumours)),
    )


def _sample_tumour(rng: np.random.Generator, *, hard: bool, scale: float) -> Tumour:
    radius = scale * (rng.uniform(12.0, 18.0) if hard else rng.uniform(22.0, 34.0))
    if hard:
        contrast = -rng.uniform(16.0, 26.0)  # partial volume takes a third of it
    else:
        contrast = rng.uniform(45.0, 65.0) * (1.0 if rng.random() < 0.12 else -1.0)
    x, y, z = rng.uniform((-30.0, -60.0, -50.0), (105.0, 70.0, 75.0)).tolist()
    rx, ry, rz = (radius * rng.uniform(0.85, 1.15, 3)).tolist()
    return Tumour(site_mm=(x, y, z), radii_mm=(rx, ry, rz), contrast_hu=contrast)


# Geometry: signed fields in mm, negative inside.


def ellipsoid(points: Points, centre: Vector, radii: Vector) -> Field:
    """Signed field of an ellipsoid; an infinite radius makes a cylinder along that axis.

    (|q| - 1) * min(radii) with q = (p - centre) / radii: exact on the surface, and elsewhere no
    larger than the distance, which is all that the blending below needs.
    """
    field = np.zeros_like(points[0])
    for coordinate, middle, radius in zip(points, centre, radii, strict=True):
        if math.isfinite(radius):
            q = coordinate - middle
            q /= radius
            q *= q  # in place: half the time at 160 voxels an axis
            field += q
    np.sqrt(field, out=field)
    field -= 1.0
    field *= min(radii)
    return field


def union(a: Field, b: Field, blend_mm: float) -> Field:
    """Polynomial smooth minimum: both shapes, with the crease between them filled."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0.0)
    field: Field = np.minimum(a, b) - overlap * overlap / (4.0 * blend_mm)
    return field


def intersection(a: Field, b: Field, blend_mm: float) -> Field:
    """Smooth maximum: what both shapes share, with a rounded edge; `-b` cuts b away."""
    return -union(-a, -b, blend_mm)


def smooth_field(
    rng: np.random.Generator, axes_mm: Sequence[npt.NDArray[np.floating]], period_mm: float
) -> Field:
    """Gaussian random field of variance 1 whose blobs are about half of `period_mm` wide.

    White noise on a lattice of a quarter period, blurred by a Gaussian as wide as one lattice step.
    The blur is separable, so it is three small matrix products, and since the lattice does not
    depend on the voxels, neither does the field (`scipy.ndimage.zoom` has neither virtue).

    Returns:
        float32 of shape (len(x), len(y), len(z)).
    """
    step = period_mm / 4.0
    n = math.ceil(_LATTICE_REACH_MM / step)
    lattice = np.arange(-n, n + 1) * step
    field = rng.standard_normal((2 * n + 1,) * 3).astype(np.float32)
    for axis in axes_mm:
        offset = np.clip(axis, -_LATTICE_REACH_MM, _LATTICE_REACH_MM)[:, None] - lattice
        weights = np.exp(-0.5 * (offset / step) ** 2)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        # contract the leading lattice axis, append the voxel axis: after three turns (x, y, z)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1))
    return field


# Drawing: later organs cover earlier ones; HU are those of the portal venous phase.


def _draw_trunk(p: Points, recipe: CaseRecipe) -> tuple[Field, Field, Field]:
    """Draw skin to spine, lungs and heart; return HU, body cavity and space under the diaphragm."""
    _, y, z = p
    hu = np.full(recipe.shape, -1000.0, np.float32)
    fat = 10.0 + recipe.fat_mm
    hu[ellipsoid(p, (0, 0, 0), (108 + fat, 82 + fat, math.inf)) < 0] = -100.0
    wall = ellipsoid(p, (0, 0, 0), (118, 92, math.inf))
    hu[wall < 0] = 50.0
    slanted = z + 0.35 * y + 0.2 * np.abs(p[0])
    ribs = (np.abs(wall + 5.0) < 3.5) & (np.cos(slanted * (2 * math.pi / 34)) > 0.45)
    hu[ribs & (z > -60) & (y < 70)] = 420.0
    cavity = ellipsoid(p, (0, 0, 0), (108, 82, math.inf))
    hu[cavity < 0] = -90.0

    right_dome = ellipsoid(p, (50, 0, -30), (78, 98, 118))
    left_dome = ellipsoid(p, (-50, 0, -30), (78, 98, 108))
    abdomen = union(right_dome, left_dome, 20.0)
    chest = (cavity < 0) & (z > 0)
    hu[chest & (abdomen > 0)] = -820.0  # lung
    hu[chest & (np.abs(abdomen) < 3)] = 45.0  # diaphragm
    hu[ellipsoid(p, (-18, 32, 118), (52, 44, 48)) < 0] = 120.0  # heart

    for side in (-1, 1):
        hu[ellipsoid(p, (side * 36, -76, 0), (32, 20, math.inf)) < 0] = 52.0  # back muscle
        hu[ellipsoid(p, (side * 34, -42, -85), (17, 17, 85)) < 0] = 55.0  # psoas
    vertebra = ellipsoid(p, (0, -52, 0), (22, 18, math.inf))
    hu[(vertebra < 0) | (ellipsoid(p, (0, -86, 0), (5, 16, math.inf)) < 0)] = 320.0
    hu[np.abs(vertebra + 1.5) < 1.5] = 600.0
    hu[(vertebra < 0) & (np.cos(z * (2 * math.pi / 36)) > 0.8)] = 90.0  # discs
    hu[ellipsoid(p, (0, -76, 0), (9, 7, math.inf)) < 0] = 30.0  # canal
    return hu, cavity, abdomen


def _draw_organs(
    hu: Field, p: Points, recipe: CaseRecipe, cavity: Field, abdomen: Field, loops: Field
) -> list[Field]:
    """Draw all organs except the liver into `hu`; return the fields that the liver must avoid."""
    # Bowel: the level sets of a random field make walls, contents and gas.
    room = (ellipsoid(p, (0, 22, -75), (98, 58, 70)) < 0) & (cavity < 0)
    for level, value in ((-0.1, 45.0), (0.35, recipe.bowel_hu), (1.2, -750.0)):
        hu[room & (loops > level)] = value
    hu[ellipsoid(p, (-12, -24, 0), (10, 10, math.inf)) < 0] = 175.0  # aorta
    cava = ellipsoid(p, (18, -24, 0), (12, 9, math.inf))
    hu[cava < 0] = 125.0

    stomach = np.where(abdomen < 0, ellipsoid(p, (-48, 26, 30), (42, 40, 46)), np.float32(1))
    hu[stomach < 0] = 60.0
    hu[stomach < -5] = 25.0
    hu[
        (stomach < -5) & (p[1] > 44)
    ] = -850.0  # gas rises to the front: the patient lies on the back

    s = recipe.spleen_scale
    spleen = ellipsoid(p, (-82, -34, 34), (30 * s, 42 * s, 48 * s))
    spleen = intersection(spleen, -ellipsoid(p, (-48, -14, 30), (28, 36, 60)), 8.0)
    spleen = intersection(intersection(spleen, cavity + 3.0, 6.0), abdomen + 4.0, 6.0)
    hu[spleen < 0] = recipe.spleen_hu

    for side in (-1, 1):
        kidney = ellipsoid(p, (side * 56, -44, -32 - side * 6), (26, 25, 50))
        hu[kidney < 0] = recipe.kidney_hu + 25.0  # cortex
        hu[kidney < -8] = recipe.kidney_hu - 15.0
        hu[ellipsoid(p, (side * 44, -40, -32 - side * 6), (15, 9, 18)) < 0] = -40.0  # sinus fat
    gallbladder = ellipsoid(p, (36, 34, -22), (15, 18, 26))
    hu[gallbladder < 0] = 8.0
    back = ellipsoid(p, (0, -58, 0), (46, 40, math.inf))
    return [kidney - 4.0, gallbladder, cava - 1.0, back]  # of the kidneys, the right one


def _liver(
    p: Points, recipe: CaseRecipe, cavity: Field, abdomen: Field, cuts: list[Field]
) -> Field:
    """Signed field of the liver, which fills the space its neighbours (`cuts`) leave.

    A big right lobe under the dome of the diaphragm, a tapered left lobe in front of the stomach, a
    slanted lower surface, the fissure between the lobes and the porta below.
    """
    x, y, z = p
    s, kind = recipe.liver_scale, recipe.liver_shape
    right = ellipsoid(p, (58.0, -4.0, 12.0), (64.0 * s, 82.0 * s, 92.0 * s))
    if kind == "large_left_lobe":
        left = ellipsoid(p, (-22.0, 36.0, 42.0), (92.0 * s, 42.0 * s, 40.0 * s))
        slope, lowest = 0.35, -45.0
    else:
        left = ellipsoid(p, (12.0, 38.0, 38.0), (76.0 * s, 35.0 * s, 36.0 * s))
        slope, lowest = 0.7, -70.0 * s
    if kind == "deformed":  # Riedel's lobe: a tongue that hangs down on the right
        tongue = ellipsoid(p, (80.0, 5.0, -55.0), (24.0, 40.0, 62.0))
    below = (lowest + slope * (90.0 - x) - 0.15 * y - z) * (1.0 / math.hypot(1.0, slope))
    liver = intersection(union(right, left, 18.0), below, 14.0)
    if kind == "deformed":
        liver = union(liver, tongue, 25.0)
    if kind == "resected":
        ca, sa = math.cos(recipe.cut_angle), math.sin(recipe.cut_angle)
        liver = intersection(liver, (x - 62.0) * ca - (z - 10.0) * sa, 8.0)
    fissure = ellipsoid(p, (20.0, 74.0, 22.0), (5.0, 24.0, 45.0))
    porta = ellipsoid(p, (16.0, 2.0, -8.0), (26.0, 18.0, 34.0))
    for cut, blend in [(fissure, 6.0), (porta, 14.0), *((cut, 8.0) for cut in cuts)]:
        liver = intersection(liver, -cut, blend)
    return intersection(intersection(liver, cavity + 3.0, 8.0), abdomen + 4.0, 8.0)


def _draw_tumours(
    hu: Field,
    label: npt.NDArray[np.uint8],
    p: Points,
    recipe: CaseRecipe,
    liver: Field,
    bumps: Field,
) -> None:
    for tumour in recipe.tumours:
        radius = min(tumour.radii_mm)
        # As deep in the liver as most of the tumour needs, or as the liver allows.
        deep = np.flatnonzero(liver <= max(-0.7 * radius, 0.8 * float(liver.min())))
        found = np.stack([c.ravel()[deep] for c in p], axis=1)  # (N, 3)
        nearest = np.argmin(((found - np.array(tumour.site_mm)) ** 2).sum(axis=1))
        x, y, z = found[nearest].tolist()
        surface = ellipsoid(p, (x, y, z), tumour.radii_mm) + 0.12 * radius * bumps
        inside = (surface < 0) & (liver < 0)
        hu[inside] = recipe.liver_hu + tumour.contrast_hu
        label[inside] = TUMOUR


def render_case(
    recipe: CaseRecipe, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Draw a case on its voxel grid.

    Args:
        recipe: the patient and the scan.
        rng: the case's stream, used for the random fields first and for the noise last.

    Returns:
        Image in HU and label in {0, 1, 2}, both of shape `recipe.shape`, axes R, A, S.
    """
    steps = zip(
        recipe.shape, recipe.spacing_mm, recipe.body_shift_mm, recipe.body_scale, strict=True
    )
    axes = [((np.arange(n) - (n - 1) / 2) * mm - shift) / scale for n, mm, shift, scale in steps]
    grid = np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij", sparse=True)
    # One smooth warp of the whole body keeps neighbours together; x, y and z are (X, Y, Z) each.
    x, y, z = (g + 4.0 * smooth_field(rng, axes, 160.0) for g in grid)
    p = (x, y, z)

    hu, cavity, abdomen = _draw_trunk(p, recipe)
    cuts = _draw_organs(hu, p, recipe, cavity, abdomen, loops=smooth_field(rng, axes, 55.0))
    liver = _liver(p, recipe, cavity, abdomen, cuts)
    liver += recipe.liver_roughness_mm * smooth_field(rng, axes, 70.0)
    parts, _ = connected_parts(liver < 0)  # cuts and roughness leave crumbs; a liver is one piece
    liver[parts != np.bincount(parts[liver < 0], minlength=1).argmax()] = 1.0
    hu[liver < 0] = recipe.liver_hu
    # Veins: where two random fields vanish together there are winding curves.
    curves = np.hypot(smooth_field(rng, axes, 110.0), smooth_field(rng, axes, 110.0))
    hu[(liver < -6) & (curves < 0.17)] = recipe.liver_hu + 28.0
    label = np.where(liver < 0, np.uint8(LIVER), np.uint8(BACKGROUND))
    bumps = smooth_field(rng, axes, 45.0)
    if label.any():  # a small field of view may miss the liver
        _draw_tumours(hu, label, p, recipe, liver, bumps)

    hu = gaussian_filter(hu, 0.7, truncate=3.0)  # partial volume
    hu += 4.0 * smooth_field(rng, axes, 80.0)
    noise = rng.standard_normal(recipe.shape, dtype=np.float32)
    noise = gaussian_filter(noise, 0.6, truncate=3.0)  # neighbouring voxels of a CT are correlated
    hu += noise * (recipe.noise_hu / noise.std())
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), label


# Files.


def write_phantom_dataset(
    root: str | Path,
    *,
    n_volumes: int = 48,
    size: int | tuple[int, int, int] = 64,
    hard_fraction: float = 0.25,
    noise_hu: float = 12.0,
    tumour_rate: float = 0.7,
    tumour_scale: float = 1.0,
    spacing_mm: Vector | None = None,
    seed: int = 0,
) -> Path:
    """Write the phantoms as an MSD data set, unless they are there already, and return its folder.

    The folder `root/phantom_<hash of all parameters and GENERATOR_VERSION>` appears in one step, so
    it is either absent or complete. Case k depends on the seed and its number, not on `n_volumes`.
    `dataset.json` is MSD's, plus "hard_cases": the ids of the cases drawn as hard.

    Args:
        root: folder for phantom data sets; made if need be.
        n_volumes: number of cases, at least 1.
        size: nominal voxels along R, A, S (one number: all three), at least 24 each; a case varies
            by 15% an axis, and is stored in one of ORIENTATIONS.
        hard_fraction: share of hard cases in [0, 1]; see `is_hard`.
        noise_hu: standard deviation of a plain case's noise in HU, at least 0.
        tumour_rate: probability in [0, 1] that a plain case has tumours; a hard case always has.
        tumour_scale: factor of the tumours' radii, above 0; 1 for 22 to 34 mm in a plain case.
        spacing_mm: nominal voxel spacing along R, A, S in mm; a case varies by 5% an axis. Default:
            what makes the field of view FIELD_OF_VIEW_MM. The anatomy keeps its size in mm, so a
            smaller field of view shows less of the body.
        seed: base of every case's random stream, at least 0.

    Raises:
        ValueError: a parameter is out of its range; nothing has been written.
    """
    shape = _three_sizes(size)
    spacing = _three_spacings(spacing_mm, shape)
    _check_ranges(n_volumes, hard_fraction, noise_hu, tumour_rate, tumour_scale, seed)
    parameters = {
        "generator_version": GENERATOR_VERSION,
        "n_volumes": int(n_volumes),
        "size": shape,
        "hard_fraction": float(hard_fraction),
        "noise_hu": float(noise_hu),
        "tumour_rate": float(tumour_rate),
        "tumour_scale": float(tumour_scale),
        "spacing_mm": spacing,
        "seed": int(seed),
    }
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(root) / f"phantom_{digest}"
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock saves the work of a second process; the rename keeps the result whole, also on file
    # systems where locks do nothing.
    with locked(folder.parent / f".{folder.name}.lock"):
        if _is_complete(folder):
            return folder
        scratch = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
        try:
            hard_cases = []
            for index in track(range(n_volumes), "drawing CT phantoms", "volume", n_volumes):
                # seed_for is for the rounds; a data set must not change with the experiment's rule
                rng = np.random.default_rng([seed, index])
                recipe = sample_recipe(
                    rng,
                    hard=is_hard(index, hard_fraction=hard_fraction, seed=seed),
                    size=shape,
                    spacing_mm=spacing,
                    noise_hu=noise_hu,
                    tumour_rate=tumour_rate,
                    tumour_scale=tumour_scale,
                )
                _write_case(scratch, _case_id(index), recipe, rng)
                if recipe.hard:
                    hard_cases.append(_case_id(index))
            _write_dataset_json(scratch, n_volumes, hard_cases, parameters)
            _publish(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # nothing is left of it after a rename
    return folder


def _check_ranges(
    n_volumes: int,
    hard_fraction: float,
    noise_hu: float,
    tumour_rate: float,
    tumour_scale: float,
    seed: int,
) -> None:
    if n_volumes < 1:
        raise ValueError(f"n_volumes is {n_volumes}; it must be at least 1.")
    if not 0.0 <= hard_fraction <= 1.0:
        raise ValueError(f"hard_fraction is {hard_fraction}; it must be between 0 and 1.")
    if not 0.0 <= noise_hu < math.inf:
        raise ValueError(f"noise_hu is {noise_hu}; it must be a finite number, at least 0.")
    if not 0.0 <= tumour_rate <= 1.0:
        raise ValueError(f"tumour_rate is {tumour_rate}; it must be between 0 and 1.")
    if not 0.0 < tumour_scale < math.inf:
        raise ValueError(f"tumour_scale is {tumour_scale}; it must be a finite number above 0.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")


def _three_sizes(size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    sizes = (size, size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 3 or min(sizes) < SMALLEST_SIZE:
        raise ValueError(f"size is {size}; it must be at least {SMALLEST_SIZE} on each of 3 axes.")
    return sizes[0], sizes[1], sizes[2]


def _three_spacings(spacing_mm: Vector | None, size: tuple[int, int, int]) -> Vector:
    if spacing_mm is None:
        fx, fy, fz = FIELD_OF_VIEW_MM
        spacing_mm = (fx / size[0], fy / size[1], fz / size[2])
    if len(spacing_mm) != 3 or not all(0.0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm is {spacing_mm}; it must be 3 finite numbers above 0.")
    return float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])


def _case_id(index: int) -> str:
    return f"phantom_{index:03d}"


def _is_complete(folder: Path) -> bool:
    return (folder / "dataset.json").is_file()


def _write_case(folder: Path, case_id: str, recipe: CaseRecipe, rng: np.random.Generator) -> None:
    """Render a case and write its image and label, re-oriented alike, with one affine."""
    image, label = render_case(recipe, rng)
    affine = np.diag([*recipe.spacing_mm, 1.0])
    middle = (np.array(recipe.shape) - 1) / 2
    affine[:3, 3] = np.array(recipe.origin_mm) - middle * recipe.spacing_mm
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(recipe.orientation))
    for subfolder, array in (("imagesTr", image), ("labelsTr", label)):
        nifti = nibabel.Nifti1Image(array, affine).as_reoriented(turn)
        nifti.header.set_xyzt_units("mm")
        path = folder / subfolder / f"{case_id}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nifti, path)  # gzip level 1, no time stamp: fast, and always the same bytes


def _write_dataset_json(
    folder: Path, n_volumes: int, hard_cases: list[str], parameters: dict[str, object]
) -> None:
    ids = [_case_id(index) for index in range(n_volumes)]
    content = {
        "name": "Phantom",
        "description": "Liver and liver tumours in drawn abdominal CT volumes",
        "reference": "alseg.data.phantom",
        "licence": "CC0-1.0",
        "release": f"{GENERATOR_VERSION}.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "numTraining": n_volumes,
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in ids
        ],
        "test": [],
        "hard_cases": hard_cases,
        "parameters": parameters,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _publish(scratch: Path, folder: Path) -> None:
    """Move the finished folder into place in one step; if another process was first, keep its."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not _is_complete(folder):  # so something else is in the way
            raise
