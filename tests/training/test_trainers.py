from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging

from alseg.core.errors import ConfigError
from alseg.system.console import duration
from alseg.system.distributed import process_group
from alseg.training.module import SegmentationModule
from alseg.training.scoring_module import ScoringModule
from alseg.training.trainers import cpu_has_bfloat16, make_trainer, precision_for, workers_for
from tests.smoke_runs import run_smoke


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


def test_what_a_cpu_has_for_bfloat16_is_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"avx512_bf16": True, "avx512_f": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx512_f": True, "cpu_name": "bf16"}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c, raising=False)
        assert cpu_has_bfloat16() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.10
    assert not cpu_has_bfloat16()


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


def test_channels_last_holds_in_training_evaluation_and_scoring(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: dict[str, bool] = {}

    def watch(step: str) -> None:
        kind = ScoringModule if step == "predict_step" else SegmentationModule
        plain = getattr(kind, step)

        def watched(self: SegmentationModule | ScoringModule, *arguments: object) -> object:
            weights = [p for p in self.network.parameters() if p.dim() == 5 and len(p[0]) > 1]
            last[step] = all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)
            return plain(self, *arguments)

        monkeypatch.setattr(kind, step, watched)

    for step in ("training_step", "validation_step", "test_step", "predict_step"):
        watch(step)
    settings = ("strategy=variance", "pool.rounds=2", "steps_per_round=4")
    state = run_smoke(tmp_path / "last", shared, "trainer.channels_last=true", *settings)
    assert last == dict.fromkeys(
        ("training_step", "validation_step", "test_step", "predict_step"), True
    )
    plain = run_smoke(tmp_path / "first", shared, *settings)
    assert not any(last.values())
    first_dice = [s["history"][0]["test_dice"] for s in (state, plain)]
    assert first_dice[0] == pytest.approx(first_dice[1], abs=0.01)  # other last bits


def test_callbacks_of_the_settings_take_part_in_each_training_with_a_state_of_their_own(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_steps: list[int] = []
    counted = EMAWeightAveraging.on_train_batch_end

    def watched(self: EMAWeightAveraging, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == 1:
            first_steps.append(self._latest_update_step)
        counted(self, trainer, *rest)

    monkeypatch.setattr(EMAWeightAveraging, "on_train_batch_end", watched)
    average = "{_target_: pytorch_lightning.callbacks.EMAWeightAveraging, decay: 0.9}"
    settings = ("pool.rounds=2", "steps_per_round=4")
    averaged = run_smoke(tmp_path / "average", shared, f"+trainer.callbacks=[{average}]", *settings)
    assert first_steps == [0, 0]
    plain = run_smoke(tmp_path / "plain", shared, *settings)
    assert averaged["history"][0]["val_dice"] != plain["history"][0]["val_dice"]


def test_channels_last_is_a_switch() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.channels_last is 'always'"):
        make_trainer(accelerator="cpu", channels_last="always")  # type: ignore[arg-type]


def test_processes_on_the_cpu_leave_gpus_untouched_and_more_than_gpus_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined: list[str] = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, timeout: joined.append(backend)
    )
    with process_group("cpu"):
        assert joined == ["gloo"]
    with (
        pytest.raises(ConfigError, match=r"than it has GPUs \(1\).*--nproc-per-node 1"),
        process_group("auto"),
    ):
        pass
    assert joined == ["gloo"]
