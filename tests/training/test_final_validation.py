"""The last weights of a training are validated whatever the interval."""

from __future__ import annotations

from pathlib import Path

import pytest

from alseg.training.module import SegmentationModule
from tests.smoke_runs import run_smoke


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("steps_per_round=5", "val_interval=2"), [2, 4, 5]),
        (("steps_per_round=4", "val_interval=2"), [2, 4]),  # once
        # the first stage has 6 steps, the second 2
        (("semi_supervised=pseudo_label", "steps_per_round=8", "val_interval=4"), [4, 6, 2]),
    ],
)
def test_the_last_weights_are_validated(
    settings: tuple[str, ...],
    expected: list[int],
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validated: list[int] = []
    start = SegmentationModule.on_validation_epoch_start

    def recorded(self: SegmentationModule) -> None:
        if self.trainer.state.fn == "fit":  # not for the report
            validated.append(self.trainer.global_step)
        start(self)

    monkeypatch.setattr(SegmentationModule, "on_validation_epoch_start", recorded)
    run_smoke(tmp_path, shared, "strategy=random", "pool.rounds=1", *settings)
    assert validated == expected
