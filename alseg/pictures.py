"""Pictures for people: the learning curve of a run and the overlay of a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from alseg.files import replacing

# Okabe and Ito's colours, distinct for colour-blind readers
CLASS_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")


def draw_learning_curve(
    path: Path, rows: Sequence[dict[str, Any]], classes: Sequence[str], title: str
) -> None:
    """Plot Dice against the number of labelled volumes: mean and each class, validation and test.

    Args:
        path: where the PNG goes.
        rows: the rows of metrics.csv.
        classes: the foreground class names.
        title: the plot's title.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    labelled = [row["labelled"] for row in rows]
    axes.plot(
        labelled, [r["test_dice"] for r in rows], "o-", color="black", lw=2.2, label="test, mean"
    )
    axes.plot(
        labelled,
        [r["val_dice"] for r in rows],
        "o--",
        color="black",
        lw=1.2,
        alpha=0.6,
        label="validation, mean",
    )
    for index, name in enumerate(classes):
        colour = CLASS_COLOURS[index % len(CLASS_COLOURS)]
        values = [r[f"test_dice_{name}"] for r in rows]
        axes.plot(labelled, values, ".-", color=colour, lw=1.4, label=f"test, {name}")
    axes.set(xlabel="labelled volumes", ylabel="Dice", title=title, xticks=labelled)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    _save(figure, path)


def draw_query(
    path: Path,
    *,
    image: Tensor,
    prediction: Tensor,
    uncertainty: Tensor,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    title: str,
) -> None:
    """Draw image, prediction and uncertainty on the slice with the most uncertainty.

    Args:
        path: where the PNG goes.
        image: intensities, shape [D, H, W], axes right-left, back-front, foot-head.
        prediction: class indices, the same shape.
        uncertainty: the strategy's voxel map, the same shape.
        spacing_mm: voxel size along each axis.
        classes: the foreground class names.
        title: the picture's title.
    """
    slice_index = int(uncertainty.sum(dim=(0, 1)).argmax())
    # transposed, so that rows run from back to front
    flat, classes_map, heat = (
        volume[:, :, slice_index].T.numpy() for volume in (image, prediction, uncertainty)
    )
    low, high = np.percentile(image.numpy(), (1, 99))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    aspect = spacing_mm[1] / spacing_mm[0]
    for axes, name in zip(panels, ("image", "prediction", "uncertainty"), strict=True):
        axes.imshow(flat, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
        axes.set(title=name, xticks=[], yticks=[])
    colours = ListedColormap([CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(len(classes))])
    shown = np.ma.masked_equal(classes_map, 0)
    limits = {"vmin": 0.5, "vmax": len(classes) + 0.5}
    panels[1].imshow(
        shown,
        cmap=colours,
        alpha=0.55,
        origin="lower",
        aspect=aspect,
        interpolation="none",
        **limits,
    )
    for index, name in enumerate(classes):
        panels[1].plot([], [], "s", color=colours(index), label=name)
    panels[1].legend(loc="lower right", fontsize="x-small", framealpha=0.7)
    top = max(float(uncertainty.max()), 1e-12)
    # faint where certain, so that the image shows through
    panels[2].imshow(
        heat, cmap="inferno", vmin=0, vmax=top, alpha=np.clip(heat / top * 2, 0, 0.85),
        origin="lower", aspect=aspect,
    )  # fmt: skip
    scale = ScalarMappable(Normalize(0, top), "inferno")  # opaque, unlike the overlay
    figure.colorbar(scale, ax=panels[2], fraction=0.046)
    figure.suptitle(f"{title} (axial slice {slice_index})", fontsize="medium")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
