from pathlib import Path

import matplotlib.image
import torch

from alseg.pictures import draw_learning_curve, draw_query


def test_the_overlay_shows_the_slice_with_the_most_uncertainty(tmp_path: Path) -> None:
    image = torch.rand(20, 16, 12)
    uncertainty = torch.zeros(20, 16, 12)
    uncertainty[5:9, 4:8, 7] = 0.2

    def draw(name: str, uncertainty: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        path = tmp_path / f"{name}.png"
        draw_query(
            path,
            image=image,
            prediction=prediction,
            uncertainty=uncertainty,
            spacing_mm=[1.0, 1.0, 2.0],
            classes=["liver"],
            title="case",
        )
        return torch.from_numpy(matplotlib.image.imread(path))

    nothing = torch.zeros(20, 16, 12, dtype=torch.long)
    something = nothing.clone()
    something[5:9, 4:8, 7] = 1
    plain = draw("plain", uncertainty, nothing)
    predicted = draw("predicted", uncertainty, something)
    # The prediction lies on the chosen slice, so the middle panel changes, and only it.
    changed = (plain != predicted).any(dim=2).any(dim=0).nonzero()
    width = plain.shape[1]
    assert width * 0.25 < changed.min() < changed.max() < width * 0.75
    elsewhere = nothing.clone()
    elsewhere[5:9, 4:8, 2] = 1
    assert torch.equal(draw("elsewhere", uncertainty, elsewhere), plain)


def test_the_learning_curve_takes_any_number_of_rounds_and_classes(tmp_path: Path) -> None:
    classes = [f"c{i}" for i in range(9)]
    row = {"val_dice": 0.5, "test_dice": float("nan")} | {f"test_dice_{c}": 0.5 for c in classes}
    for n_rounds in (1, 4):
        rows = [row | {"labelled": 5 * n} for n in range(1, n_rounds + 1)]
        path = tmp_path / "deep" / f"{n_rounds}.png"
        draw_learning_curve(path, rows, classes, "title")
        assert path.stat().st_size > 5000
