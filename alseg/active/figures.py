"""Pictures for people: the learning curve of a run and the overlay of a query."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import nibabel
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch import Tensor

from alseg.run.measure import TEST, cost_axis, measure_of, validation_of
from alseg.strategies.places import Box
from alseg.system.files import replacing
from alseg.system.plotting import (
    FONT_SIZE,
    INK,
    canvas,
    legend_below,
    mark_counts,
    save_png,
    wrapped,
)
from alseg.training.metrics import CaseMetrics

# Okabe and Ito's colours, distinct for colour-blind readers
CLASS_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")
PANEL_WIDTH = 2.7  # inches


@dataclass(frozen=True)
class View:
    """A plane that volumes are looked at in.

    Attributes:
        name: of the plane.
        axes: where the picture's right and top are, and where slices are counted to.
        sides: what lies on the left and on the right of the picture.
        first: where slices are counted from.
    """

    name: str
    axes: tuple[str, str, str]
    sides: tuple[str, str]
    first: str


# As radiologists look: the patient's right, or front, is on the picture's left.
AXIAL = View("axial", ("L", "A", "S"), ("R", "L"), "the feet")
CORONAL = View("coronal", ("L", "S", "A"), ("R", "L"), "the back")
SAGITTAL = View("sagittal", ("P", "S", "L"), ("A", "P"), "the patient's right")
VIEWS = (SAGITTAL, CORONAL, AXIAL)  # across left-right, front-back, foot-head


def class_colours(n_classes: int) -> list[str]:
    """A colour for each foreground class, no two alike."""
    if n_classes <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS[:n_classes])
    if n_classes <= 20:
        return [to_hex(matplotlib.colormaps["tab20"](i)) for i in range(n_classes)]
    return [to_hex(c) for c in matplotlib.colormaps["turbo"](np.linspace(0, 1, n_classes))]


def draw_learning_curve(
    path: Path,
    rows: Sequence[dict[str, Any]],
    classes: Sequence[str],
    title: str,
    cost_unit: str = "volume",
    units: str = "volumes",
) -> None:
    """Plot Dice against what was annotated: means of the parts and of each class.

    That is the number of labelled units; measured time, where it is the cost.

    Args:
        path: where the PNG goes.
        rows: the rows of metrics.csv; may be empty.
        classes: the foreground class names.
        title: the plot's title.
        cost_unit: what the column ``cost`` counts.
        units: what is counted.
    """
    in_minutes = cost_unit == "minutes"
    annotated = [row["cost" if in_minutes else "labelled"] for row in rows]
    measure = measure_of(rows[0]) if rows else TEST
    mean = {"color": INK, "marker": "o"}
    curves: list[tuple[str, str, dict[str, Any]]] = []
    if measure is TEST:
        curves.append(("test, mean", TEST.column, mean | {"lw": 2.2}))
    validation = {"ls": "--", "lw": 1.2, "alpha": 0.6}
    validating = validation_of(rows[0] if rows else ())
    curves.append((f"{validating.name}, mean", validating.column, mean | validation))
    for name, colour in zip(classes, class_colours(len(classes)), strict=True):
        style = {"color": colour, "marker": ".", "lw": 1.4}
        curves.append((f"{measure.name}, {name}", measure.of_class(name), style))
    with canvas(7.5, 4.0) as figure:
        axes = figure.add_subplot()
        lines = [
            axes.plot(annotated, [row[column] for row in rows], **style)[0]
            for _, column, style in curves
        ]
        label = cost_axis(cost_unit) if in_minutes else f"labelled {units}"
        axes.set(xlabel=label, ylabel="Dice", title=wrapped(title, 6.5))
        if not in_minutes:
            mark_counts(axes, annotated)
        axes.grid()
        legend_below(figure, lines, [label for label, _, _ in curves])
        _save(figure, path)


def draw_query(
    path: Path,
    *,
    image: Tensor,
    prediction: Tensor,
    uncertainty: Tensor,
    label: Tensor | None,
    affine: Tensor,
    classes: Sequence[str],
    title: str,
    not_annotated: Collection[str] = (),
    region: Box | None = None,
    across: int | None = None,
) -> None:
    """Draw image, prediction, true label and uncertainty on the slice with the most uncertainty.

    In radiological convention: the patient's right is on the left of the picture, and so is the
    front where it is seen from the side.

    Args:
        path: where the PNG goes.
        image: intensities, shape [D, H, W].
        prediction: class indices, the same shape.
        uncertainty: the strategy's voxel map, the same shape.
        label: the true class indices, the same shape, below 0 where nobody has annotated; None
            where they are hidden.
        affine: from voxel indices to RAS millimetres, shape [4, 4].
        classes: the foreground class names.
        title: the picture's title.
        not_annotated: those of them that nobody has annotated in this case.
        region: a box of voxels that was asked for, outlined on its slice with the most uncertainty;
            None for the whole volume.
        across: the axis of the volumes that is looked along; None for axial slices.
    """
    view = AXIAL if across is None else VIEWS[int(io_orientation(affine.numpy())[across, 0])]
    volumes = {"image": image, "prediction": prediction}
    if label is not None:
        volumes["true label"] = label
    volumes["uncertainty"] = uncertainty
    names, inside = list(volumes), torch.zeros_like(image)
    inside[region if region is not None else ...] = 1
    slices, aspect, where = _slices(volumes | {"region": inside}, affine, view)
    n_rows, n_columns = slices["image"].shape
    height = PANEL_WIDTH * min(2.0, max(0.5, aspect * n_rows / n_columns))
    width = PANEL_WIDTH * len(names) + 0.6
    dice = {} if label is None else _dice(prediction, label, classes)
    low, high = np.percentile(image.numpy(), (1, 99))
    colours = ListedColormap(class_colours(len(classes)))
    with canvas(width, height + 0.9) as figure:
        panels = dict(zip(names, figure.subplots(1, len(names)), strict=True))
        grey = {"origin": "lower", "aspect": aspect, "interpolation": "none"}
        for name, axes in panels.items():
            axes.imshow(slices["image"], cmap="gray", vmin=low, vmax=high, **grey)
            axes.set(title=name, xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            _mark_sides(axes, view)
            if region is not None:
                axes.add_patch(_outline(slices["region"]))
        if label is not None:
            _darken_unknown(panels["true label"], label, slices["true label"], **grey)
            where += f"; Dice over {_measured_on(label)}"
        for name in panels.keys() & {"prediction", "true label"}:
            panels[name].imshow(
                np.ma.masked_less_equal(slices[name], 0), cmap=colours, alpha=0.55,
                vmin=0.5, vmax=len(classes) + 0.5, **grey,
            )  # fmt: skip
        present = [value for value in dice.values() if not math.isnan(value)]
        if present:
            panels["prediction"].set_title(f"prediction, mean Dice {np.mean(present):.2f}")
        top = max(float(uncertainty.max()), 1e-12)
        _draw_uncertainty(figure, panels["uncertainty"], slices["uncertainty"], top, **grey)
        figure.suptitle(wrapped(f"{title} ({where})", width - 0.5))
        handles = [Patch(color=colours(i), alpha=0.8) for i in range(len(classes))]
        legend_below(figure, handles, _legend_texts(classes, dice, label, not_annotated))
        _save(figure, path)


def _slices(
    volumes: Mapping[str, Tensor], affine: Tensor, view: View
) -> tuple[dict[str, np.ndarray], float, str]:
    """The slice of some volumes that has the most uncertainty inside a region.

    Args:
        volumes: by name, [D, H, W], ``uncertainty`` and ``region`` among them.
        affine: from voxel indices to RAS millimetres.
        view: the plane.

    Returns:
        The slices [rows from the bottom, columns], how much higher than wide a voxel is, and which
        slice it is, in words.
    """
    turned = {name: _turned(volume, affine, view) for name, volume in volumes.items()}
    arrays = {name: np.asarray(turned[name].dataobj) for name in turned}
    inside = arrays["region"] > 0
    by_slice = np.where(inside, arrays["uncertainty"], 0).sum(axis=(0, 1))
    # of the region's slices, also where none is uncertain
    index = int(np.where(inside.any(axis=(0, 1)), by_slice, -1).argmax())
    spacing_mm = np.linalg.norm(turned["image"].affine[:3, :3], axis=0)
    where = f"{view.name} slice {index + 1} of {len(by_slice)}, counted from {view.first}"
    slices = {name: array[:, :, index].T for name, array in arrays.items()}
    return slices, float(spacing_mm[1] / spacing_mm[0]), where


def _outline(inside: np.ndarray) -> Rectangle:
    """The outline of a box in a slice, from its mask [rows, columns]."""
    (bottom, left), (top, right) = (f(np.argwhere(inside), axis=0) for f in (np.min, np.max))
    box = Rectangle((left - 0.5, bottom - 0.5), right - left + 1, top - bottom + 1)
    box.set(fill=False, edgecolor="white", linewidth=1.5, label="region")
    box.set_path_effects([withStroke(linewidth=3, foreground="black")])
    return box


def _draw_uncertainty(
    figure: Figure, axes: Axes, heat: np.ndarray, top: float, **options: Any
) -> None:
    """Lay a slice of the uncertainty over the image, with a colour bar from 0 to ``top``."""
    # faint where certain, so that the image shows through
    alpha = np.clip(heat / top * 2, 0, 0.85)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=top, alpha=alpha, **options)
    scale = ScalarMappable(Normalize(0, top), "inferno")  # opaque, unlike the overlay
    figure.colorbar(scale, ax=axes, fraction=0.046)


def _turned(volume: Tensor, affine: Tensor, view: View) -> nibabel.Nifti1Image:
    """The volume with its axes flipped and swapped into those of a view."""
    image = nibabel.Nifti1Image(volume.numpy().astype(np.float32), affine.numpy())
    to_order = ornt_transform(io_orientation(image.affine), axcodes2ornt(view.axes))
    return image.as_reoriented(to_order)


def _dice(prediction: Tensor, label: Tensor, classes: Sequence[str]) -> Mapping[str, float]:
    collected = CaseMetrics(classes)
    collected.update("", prediction[None, None], label[None, None])
    return collected.by_class()


def _legend_texts(
    classes: Sequence[str],
    dice: Mapping[str, float],
    label: Tensor | None,
    not_annotated: Collection[str],
) -> list[str]:
    """The classes, each with its Dice, or why it has none; without either where no label is."""
    is_partial = label is not None and bool((label < 0).any())
    absent = "not in what is annotated" if is_partial else "not in this volume"

    def text_of(name: str) -> str:
        if name not in dice:
            return name
        if name in not_annotated:
            return f"{name}: not annotated in this case"
        return f"{name}: {absent if math.isnan(dice[name]) else f'Dice {dice[name]:.2f}'}"

    return [text_of(name) for name in classes]


def _darken_unknown(axes: Axes, label: Tensor, shown: np.ndarray, **options: Any) -> None:
    """Darken a slice of a label where nobody has annotated it, and say so in the title."""
    if bool((label < 0).any()):
        axes.set_title("true label where annotated")
        unknown = np.ma.masked_where(shown >= 0, np.zeros_like(shown))
        axes.imshow(unknown, cmap=ListedColormap(["black"]), alpha=0.5, **options)


def _measured_on(label: Tensor) -> str:
    """The voxels whose Dice is told."""
    share = float((label >= 0).double().mean())
    return "the whole volume" if share == 1 else f"what is annotated, {share:.1%} of the volume"


def _mark_sides(axes: Axes, view: View) -> None:
    """The patient's sides at those of a panel: right, left, anterior or posterior."""
    for side, x, align in zip(view.sides, (0.02, 0.98), ("left", "right"), strict=True):
        axes.text(
            x, 0.5, side, transform=axes.transAxes, ha=align, va="center", color="white",
            fontsize=FONT_SIZE, path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_png(figure, file, dpi=110)
