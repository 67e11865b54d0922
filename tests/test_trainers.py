import pytest
import torch

from alseg.callbacks.progress import duration
from alseg.errors import ConfigError
from alseg.trainers import precision_for, workers_for


def test_precision_follows_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_for("cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (
        ((7, 5), "32-true"),
        ((8, 0), "bf16-mixed"),
        ((9, 0), "bf16-mixed"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert precision_for("auto") == precision_for("gpu") == expected
        assert precision_for("cpu") == "32-true"


def test_workers_suit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert workers_for("auto") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert workers_for("auto") == 8
    assert workers_for(3) == 3
    with pytest.raises(ConfigError, match="'many'"):
        workers_for("many")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
