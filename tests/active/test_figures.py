import warnings
from pathlib import Path

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import alseg.active.figures
from alseg.active.figures import class_colours, draw_learning_curve, draw_query
from alseg.system.plotting import canvas, mark_counts

RAS = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))
SHAPE = (20, 16, 12)
LONG = [f"portal vein and splenic vein with all their branches number {i:02d}" for i in range(15)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws, in place of their files."""
    drawn: list[Figure] = []
    monkeypatch.setattr(alseg.active.figures, "_save", lambda figure, _: drawn.append(figure))
    return drawn


def query(path: Path, **changes: object) -> None:
    """Draw a query whose uncertainty is on slice 7."""
    uncertainty = torch.zeros(SHAPE)
    uncertainty[5:9, 4:8, 7] = 0.2
    given = {
        "image": torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)),
        "prediction": torch.zeros(SHAPE, dtype=torch.long),
        "uncertainty": uncertainty,
        "label": None,
        "affine": RAS,
        "classes": ["liver"],
        "title": "case",
    }
    draw_query(path, **(given | changes))


def blob(slice_index: int = 7) -> torch.Tensor:
    volume = torch.zeros(SHAPE, dtype=torch.long)
    volume[5:9, 4:8, slice_index] = 1
    return volume


def test_the_overlay_shows_the_slice_with_the_most_uncertainty(tmp_path: Path) -> None:
    given = {"plain": {}, "predicted": {"prediction": blob()}, "elsewhere": {"prediction": blob(2)}}
    for name, changes in given.items():
        query(tmp_path / name, **changes)
    plain, predicted, elsewhere = (
        torch.from_numpy(matplotlib.image.imread(tmp_path / name, format="png")) for name in given
    )
    # The prediction lies on the chosen slice, so the middle panel changes, and only it.
    changed = (plain != predicted).any(dim=2).any(dim=0).nonzero()
    width = plain.shape[1]
    assert width * 0.25 < changed.min() < changed.max() < width * 0.75
    assert torch.equal(elsewhere, plain)


def shown(figure: Figure, panel: str) -> np.ndarray:
    """The topmost picture of a panel as a person sees it: first row on top, first column left."""
    (axes,) = [a for a in figure.axes if a.get_title().startswith(panel)]
    drawn = np.ma.filled(axes.images[-1].get_array(), 0)
    assert axes.images[-1].origin == "lower"
    assert not axes.xaxis_inverted()
    assert not axes.yaxis_inverted()
    return drawn[::-1]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_the_liver_is_on_the_left_and_the_front_on_top_whatever_the_axes(
    tmp_path: Path, figures: list[Figure], codes: str
) -> None:
    # in RAS the first index grows towards the patient's right; the liver lies there, and in front
    liver, uncertainty = torch.zeros(24, 16, 10), torch.zeros(24, 16, 10)
    liver[15:22, 9:14, 4:7] = 1
    uncertainty[:, :, 5] = 1
    affine = np.diag([1.0, 1.5, 3.0, 1.0])

    def turned(volume: torch.Tensor) -> nibabel.Nifti1Image:
        image = nibabel.Nifti1Image(volume.numpy(), affine)
        order = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(codes))
        )
        return image.as_reoriented(order)

    given = {name: turned(v) for name, v in (("liver", liver), ("uncertainty", uncertainty))}
    volumes = {name: torch.from_numpy(image.get_fdata()) for name, image in given.items()}
    query(
        tmp_path / "a.png",
        image=volumes["liver"],
        prediction=volumes["liver"].long(),
        label=volumes["liver"].long(),
        uncertainty=volumes["uncertainty"],
        affine=torch.from_numpy(given["liver"].affine),
    )
    (figure,) = figures
    expected = np.zeros((16, 24))
    expected[2:7, 2:9] = 1  # near the top, near the left
    for panel in ("image", "prediction", "true label"):
        np.testing.assert_array_equal(shown(figure, panel), expected)
    for axes in figure.axes[:4]:
        sides = {text.get_text(): text.get_position()[0] for text in axes.texts}
        assert sides["R"] < 0.5 < sides["L"]
        assert axes.get_aspect() == pytest.approx(1.5)  # a voxel is 1.5 times as deep as it is wide
    assert "axial slice 6 of 10, counted from the feet" in figure.get_suptitle()


def test_the_true_label_and_its_dice_are_shown_where_the_label_is_known(
    tmp_path: Path, figures: list[Figure]
) -> None:
    half = blob()
    half[5:9, 4:6] = 0  # 8 of 16 voxels: Dice 2 * 8 / (8 + 16)
    query(tmp_path / "a.png", prediction=half, label=blob(), classes=["liver", "tumour"])
    query(tmp_path / "b.png", prediction=half, classes=["liver", "tumour"])
    with_label, without = figures
    titles = [axes.get_title() for axes in with_label.axes]
    assert titles[:4] == ["image", "prediction, mean Dice 0.67", "true label", "uncertainty"]
    texts = [text.get_text() for text in with_label.legends[0].get_texts()]
    assert texts == ["liver: Dice 0.67", "tumour: not in this volume"]
    assert "counted from the feet; Dice over the whole volume)" in with_label.get_suptitle()
    assert "Dice" not in without.get_suptitle()
    assert [axes.get_title() for axes in without.axes][:3] == ["image", "prediction", "uncertainty"]
    assert [t.get_text() for t in without.legends[0].get_texts()] == ["liver", "tumour"]


def test_what_is_not_annotated_is_told_apart_from_what_is_not_there(
    tmp_path: Path, figures: list[Figure]
) -> None:
    known = blob()
    known[:, 8:] = -1  # half of the volume; the tumour may be in the other one
    classes = ["liver", "tumour", "spleen"]
    query(tmp_path / "a.png", label=known, classes=classes, not_annotated=["spleen"])
    (figure,) = figures
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "liver: Dice 0.00",
        "tumour: not in what is annotated",
        "spleen: not annotated in this case",
    ]
    suptitle = " ".join(figure.get_suptitle().split())
    assert "Dice over what is annotated, 50.0% of the volume" in suptitle
    assert figure.axes[2].get_title() == "true label where annotated"
    veil = figure.axes[2].images[1].get_array()  # rows from back to front, the first half known
    assert np.ma.getmaskarray(veil)[:8].all()
    assert not np.ma.getmaskarray(veil)[8:].any()


@pytest.mark.parametrize(
    ("codes", "across", "name", "sides"),
    [
        ("RAS", 0, "sagittal slice 6 of 20, counted from the patient's right", "AP"),
        ("LAS", 0, "sagittal slice 15 of 20, counted from the patient's right", "AP"),
        ("SRA", 0, "axial slice 15 of 20, counted from the feet", "RL"),
        ("RAS", 1, "coronal slice 6 of 16, counted from the back", "RL"),
        ("RAS", 2, "axial slice 6 of 12, counted from the feet", "RL"),
    ],
)
def test_a_slice_is_looked_at_from_its_front(
    tmp_path: Path, figures: list[Figure], codes: str, across: int, name: str, sides: str
) -> None:
    at = 14 if codes == "RAS" and across == 0 else 5 if across else 14
    box = [slice(0, n) for n in SHAPE]
    box[across] = slice(at, at + 1)
    order = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(order):
        affine[int(world), axis] = sign
    affine[3, 3] = 1
    query(tmp_path / "a.png", affine=torch.from_numpy(affine), region=tuple(box), across=across)
    (figure,) = figures
    assert name in " ".join(figure.get_suptitle().split())
    assert [text.get_text() for text in figure.axes[0].texts] == list(sides)
    (outline,) = figure.axes[0].patches
    rows, columns = figure.axes[0].images[0].get_array().shape
    assert (outline.get_height(), outline.get_width()) == (rows, columns)  # all of the picture
    assert sorted((rows, columns)) == sorted(n for axis, n in enumerate(SHAPE) if axis != across)


def test_the_front_is_on_the_left_and_the_head_on_top_from_the_side(
    tmp_path: Path, figures: list[Figure]
) -> None:
    image = torch.zeros(SHAPE)
    image[:, 12:, 9:] = 1  # in RAS the front, near the head
    query(tmp_path / "a.png", image=image, across=0)
    expected = np.zeros((12, 16))
    expected[:3, :4] = 1
    np.testing.assert_array_equal(shown(figures[0], "image"), expected)


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """The texts that a person sees, and where."""
    figure.draw_without_rendering()
    texts = figure.findobj(Text)
    for axes in figure.axes:  # tick labels out of view exist, but are not drawn
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = axis.get_major_ticks()
            outside = [tick for tick in ticks if not low <= tick.get_loc() <= high]
            hidden = {label for tick in outside for label in (tick.label1, tick.label2)}
            texts = [text for text in texts if text not in hidden]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in texts]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other, or reach over the edge of the figure."""
    boxes = drawn_texts(figure)
    edge = figure.bbox.padded(0.5)
    cut = [
        (name, "edge")
        for name, box in boxes
        if not (edge.x0 <= box.x0 and edge.y0 <= box.y0 and box.x1 <= edge.x1 and box.y1 <= edge.y1)
    ]
    return cut + [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]


@pytest.mark.parametrize("classes", [["liver"], LONG], ids=["1 class", "15 long names"])
def test_no_text_of_a_query_is_cut_or_covered(
    tmp_path: Path, figures: list[Figure], classes: list[str]
) -> None:
    query(tmp_path / "a.png", label=blob(), classes=classes, title="case_012: query 1 of round 2")
    (figure,) = figures
    assert overlapping(figure) == []
    assert len(figure.legends[0].get_texts()) == len(classes)


def rows_of(n_rounds: int, classes: list[str]) -> list[dict[str, float]]:
    row = {"val_dice": 0.5, "test_dice": float("nan")} | {f"test_dice_{c}": 0.5 for c in classes}
    return [row | {"labelled": 5 * n} for n in range(1, n_rounds + 1)]


@pytest.mark.parametrize("n_rounds", [0, 1, 60])
@pytest.mark.parametrize("classes", [["liver"], LONG], ids=["1 class", "15 long names"])
def test_the_learning_curve_takes_any_number_of_rounds_and_classes(
    tmp_path: Path, figures: list[Figure], n_rounds: int, classes: list[str]
) -> None:
    draw_learning_curve(tmp_path / "deep" / "a.png", rows_of(n_rounds, classes), classes, "title")
    (figure,) = figures
    (axes,) = figure.axes
    assert overlapping(figure) == []
    legend = figure.legends[0].get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())  # it hides no line
    assert len(figure.legends[0].get_texts()) == len(classes) + 2
    counts = [5 * n for n in range(1, n_rounds + 1)]
    numbered = list(axes.get_xticks())
    assert set(numbered) <= set(counts)
    assert numbered[:1] + numbered[-1:] == counts[:1] + counts[-1:]
    assert set(axes.get_xticks(minor=True)) | set(numbered) == set(counts)


def test_uneven_counts_have_the_first_and_the_last_number_and_no_overlap() -> None:
    with canvas(4.0, 3.0) as figure:
        axes = figure.add_subplot()
        axes.plot([5, 6, 7, 60, 99, 100], [0.0] * 6)
        mark_counts(axes, [5, 6, 7, 60, 99, 100])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "60", "100"]
        assert overlapping(figure) == []


def test_names_that_no_font_or_grammar_has_are_drawn_without_a_warning(tmp_path: Path) -> None:
    classes = [
        "$x_1$ 100% {a} \\frac",
        "_hidden",
        "\u202eright-to-left \u05d0",
        "a\nb",
        "🫀 \u809d",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_learning_curve(tmp_path / "a.png", rows_of(3, classes), classes, "$\\alpha$ 🫀")
        query(tmp_path / "b.png", label=blob(), classes=classes, title="$\\alpha$ 🫀")


@pytest.mark.parametrize("n_classes", [1, 7, 15, 40])
def test_every_class_has_a_colour_of_its_own(n_classes: int) -> None:
    assert len(set(class_colours(n_classes))) == n_classes
