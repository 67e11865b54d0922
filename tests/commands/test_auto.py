"""``data=auto`` and ``python -m alseg.plan`` from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from alseg.engine import plan_report
from alseg.export import main as export_main
from alseg.networks import low_precision
from alseg.planning.plan_file import KINDS
from tests.conftest import Outcome, write_msd

Train = Callable[..., Outcome]
Plan = Callable[..., Outcome]
FAST = ("uncertainty=mc_dropout_2", "pictures=0")
SMALL = ("data.rules.filters=4", "data.rules.step_voxels=20000", *FAST)
SHORT = ("steps_per_round=2", "pool.initial=2", "pool.query_size=2", "pool.rounds=1")


def images_in(root: Path) -> list[Path]:
    return sorted((root / "imagesTr").glob("*.nii.gz"))


def as_nnunet(phantoms: Path, root: Path) -> Path:
    shutil.copytree(phantoms / "labelsTr", root / "labelsTr")
    (root / "imagesTr").mkdir()
    for image in images_in(phantoms):
        shutil.copy(image, root / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz"))
    content = json.loads((phantoms / "dataset.json").read_text())
    labels = {name: int(value) for value, name in content["labels"].items()}
    (root / "dataset.json").write_text(
        json.dumps(
            {"channel_names": content["modality"], "labels": labels, "file_ending": ".nii.gz"}
        )
    )
    return root


def as_folder(phantoms: Path, root: Path) -> list[str]:
    shutil.copytree(phantoms / "imagesTr", root)
    labels = phantoms / "labelsTr"
    return [f"data.root={root}", f"data.labels={labels}", "data.classes=[liver,tumour]"]


@pytest.fixture
def auto(train: Train) -> Train:
    """``alseg.train data=auto`` with a tiny network and two steps."""

    def call(*overrides: str, small: bool = True) -> Outcome:
        return train("data=auto", *(SMALL if small else ()), *SHORT, *overrides, smoke=False)

    return call


@pytest.fixture
def plan(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Plan:
    """``python -m alseg.plan`` in this process."""
    from alseg.plan import main

    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, numbers: tuple[str, ...] = SMALL) -> Outcome:
        return Outcome(*call_entry_point(main, "trainer=cpu", *numbers, *overrides), tmp_path)

    return call


def values_of(run: Outcome) -> dict[str, Any]:
    return dict(yaml.safe_load((run.folder / "plan.yaml").read_text()))


@pytest.mark.parametrize("layout", ["msd", "nnunet", "folder"])
def test_a_run_of_each_format_needs_nothing_but_its_folder(
    auto: Train, phantoms: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {
        "msd": lambda: [f"data.root={phantoms}"],
        "nnunet": lambda: [f"data.root={as_nnunet(phantoms, tmp_path / 'Dataset001_Phantom')}"],
        "folder": lambda: [*as_folder(phantoms, tmp_path / "scans"), "data.channels=[CT]"],
    }[layout]()
    run = auto(*where, "pool.rounds=2")
    assert run.exit_code == 0, run.err
    values = values_of(run)
    assert set(values) == set(KINDS)
    (scaling,) = values["data.intensities"]
    assert scaling["_target_"] == "monai.transforms.ScaleIntensityRange"  # CT by its name
    config = OmegaConf.load(run.folder / "config.yaml")
    for name, value in values.items():
        assert OmegaConf.select(config, name) == value, name
    assert [t["_target_"].split(".")[-1] for t in config.data.preprocess] == [
        "Orientation", "Spacing", "ScaleIntensityRange",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["alseg.export", str(run.folder), f"bundle={tmp_path / 'b'}"])
    export_main()
    assert (tmp_path / "b" / "models" / "model.pt").is_file()


def test_settings_of_the_command_win_and_the_rest_is_planned_round_them(
    auto: Train, phantoms: Path
) -> None:
    run = auto(f"data.root={phantoms}", "data.patch_size=[16,16,8]", "model=unet_tiny")
    assert run.exit_code == 0, run.err
    config = OmegaConf.load(run.folder / "config.yaml")
    assert config.data.patch_size == config.data.inferer.roi_size == [16, 16, 8]
    assert config.model.network._target_ == "monai.networks.nets.UNet"
    assert "model.strides" not in values_of(run)
    assert "data.patch_size: [16, 16, 8] # as it was set" in (run.folder / "plan.yaml").read_text()


def test_a_plan_that_is_edited_and_given_back_is_used_as_it_is(
    auto: Train, phantoms: Path, tmp_path: Path
) -> None:
    first = auto(f"data.root={phantoms}")
    text = (first.folder / "plan.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    patch = values_of(first)["data.patch_size"]
    mine.write_text(
        text.replace(f"data.patch_size: {patch}", "data.patch_size: [16, 32, 16]").replace(
            "val_interval: 1 ", "val_interval: 2 "
        )
    )
    assert mine.read_text() != text
    # without the rules of the first run: nothing is planned again
    run = auto(
        f"data.root={phantoms}", f"data.plan={mine}", "uncertainty=mc_dropout_2", "pictures=0",
        small=False,
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    changes = {"data.patch_size": [16, 32, 16], "val_interval": 2}
    assert values_of(run) == values_of(first) | changes | {"val_interval": 2}
    config = OmegaConf.load(run.folder / "config.yaml")
    assert config.data.patch_size == [16, 32, 16]
    assert config.val_interval == 2


def test_a_damaged_plan_ends_in_one_sentence(auto: Train, phantoms: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for text, message in (
        ("data.patch_size: [8, 8", "mine.yaml is no plan, as it cannot be read as YAML"),
        ("data.spacing_mm: [1, 1, -1]", "mine.yaml: data.spacing_mm is [1, 1, -1]"),
        ("data.spacing_mm: [1, 1, 1]", "the plan lacks data.intensities, which is auto"),
        (
            "data.intensities: [{_target_: os.system, command: 'touch hacked'}]",
            "data.intensities.0._target_ is 'os.system', which alseg does not build",
        ),
    ):
        mine.write_text(text)
        run = auto(f"data.root={phantoms}", f"data.plan={mine}")
        assert run.exit_code == 2
        assert message in run.err, run.err
        assert run.err.count("\n") == 1
        assert not run.folder.exists()
    assert not Path("hacked").exists()


def test_patches_of_fewer_classes_than_the_data_has_are_refused(
    auto: Train, phantoms: Path
) -> None:
    run = auto(f"data.root={phantoms}", "data.crop_ratios=[1,1]")
    assert run.exit_code == 2
    assert "data.crop_ratios is [1, 1]; the data set has 3 classes, background" in run.err
    assert run.err.count("\n") == 1


def test_a_plan_is_refused_where_a_training_by_it_would_be(
    plan: Plan, phantoms: Path, tmp_path: Path
) -> None:
    data = f"data.root={phantoms}"
    done = plan(data, "data.crop_ratios=[1,1]", "measure=false", "save=plan.yaml")
    assert done.exit_code == 2
    assert "data.crop_ratios is [1, 1]; the data set has 3 classes, background" in done.err
    assert not (tmp_path / "plan.yaml").exists()
    (tmp_path / "mine.yaml").write_text("data.intensities: [{_target_: own.Scale}]")
    done = plan(data, "data.plan=mine.yaml")
    assert done.exit_code == 2
    assert "mine.yaml: data.intensities.0._target_ is 'own.Scale'" in done.err
    assert "if the file is your own" in done.err
    trusted = plan(data, "data.plan=mine.yaml", "trusted_packages=[own.Scale]")
    assert "the plan lacks data.spacing_mm" in trusted.err


def test_the_folder_is_listed_once(
    plan: Plan, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = shutil.copytree(phantoms / "imagesTr", tmp_path / "scans")
    listed: list[str] = []
    scandir = os.scandir

    def noted(path: Any = ".") -> Any:
        if not isinstance(path, int):  # shutil.rmtree lists what it has opened
            listed.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    patches = ("pool.unit=patch", "pool.patch_voxels=[8,6,4]")
    done = plan(f"data.root={images}", "data.classes=[liver,tumour]", *patches)
    assert done.exit_code == 0, done.err
    assert "s a step" in done.out
    assert listed.count(str(images)) == 1


def test_a_plan_says_how_many_voxels_patches_have(plan: Plan, phantoms: Path) -> None:
    data = f"data.root={phantoms}"
    done = plan(data, "measure=false", "pool.unit=patch", "pool.patch_voxels=[8,6,4]")
    assert done.exit_code == 0, done.err
    assert re.search(
        r"^# patches have 8 x 6 x 4 voxels of the files \(\d+ volumes\)$", done.out, re.M
    )
    done = plan(data, "measure=false", "pool.unit=patch", "pool.patch_mm=0.1")
    assert done.exit_code == 2
    assert "or use pool.patch_voxels" in done.err


def test_bfloat16_is_not_named_where_the_cpu_gives_wrong_numbers_in_it(
    plan: Plan, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_report, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(low_precision, "MOST", 0.0)  # of rounding, which is there on any CPU
    done = plan(f"data.root={phantoms}")
    assert done.exit_code == 0, done.err
    assert "# Not in bfloat16: in torch.bfloat16 this CPU may give wrong numbers" in done.out
    assert "bf16-mixed" not in done.out
    assert "use trainer.precision" not in done.out


@pytest.mark.parametrize(
    ("has_bfloat16", "seconds", "settings", "told"),
    [
        (True, 0.4, (), True),
        (True, 0.95, (), False),
        (True, 9.0, (), False),
        (False, 0.4, (), False),
        (True, 0.4, ("trainer.precision=32-true",), False),
    ],
)
def test_bfloat16_is_named_where_the_cpu_trains_faster_in_it(
    has_bfloat16: bool,
    seconds: float,
    settings: tuple[str, ...],
    told: bool,
    plan: Plan,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = plan_report.costs_of

    def measured(config: DictConfig, *args: Any) -> plan_report.Costs:
        is_bfloat16 = config.trainer.precision == "bf16-mixed"
        costs = measure(config, *args)
        assert ("bf16" in costs.hardware) == is_bfloat16
        return replace(costs, seconds_a_step=seconds if is_bfloat16 else 1.0)

    monkeypatch.setattr(plan_report, "cpu_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(plan_report, "costs_of", measured)
    done = plan(f"data.root={phantoms}", *settings)
    assert done.exit_code == 0, done.err
    line = "# With trainer.precision=bf16-mixed 0.400 s a step: this CPU trains 2.5 times as fast"
    assert (line in done.out) == told
    assert ("bf16" in done.out) == told


def test_hidden_labels_do_not_change_the_plan(auto: Train, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(20, 20, 16)).astype(np.float32) for _ in range(12)]
    plans, kept = [], []
    for number in range(2):
        labels = [(rng.random((20, 20, 16)) < 0.1 + 0.4 * number).astype(np.uint8) for _ in images]
        root = write_msd(tmp_path / f"data_{number}", images, labels)
        run = auto(f"data.root={root}")
        assert run.exit_code == 0, run.err
        plans.append((run.folder / "plan.yaml").read_bytes())
        kept.append(labels)
    assert not np.array_equal(kept[0], kept[1])
    assert plans[0] == plans[1]


def test_the_plan_of_a_data_set_opens_no_label(plan: Plan, phantoms: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    readable = plan(f"data.root={root}", "measure=false")
    assert readable.exit_code == 0, readable.err
    for label in (root / "labelsTr").iterdir():
        label.write_bytes(b"unreadable")
    for measure in ("false", "true"):
        blind = plan(f"data.root={root}", f"measure={measure}", "save=plan.yaml")
        assert blind.exit_code == 0, blind.err
        assert yaml.safe_load(blind.out) == yaml.safe_load(readable.out)
    assert "s a step" in blind.out
    assert "GiB of memory, the whole process" in blind.out
    assert yaml.safe_load(Path("plan.yaml").read_text(encoding="utf-8")) == yaml.safe_load(
        readable.out
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plan.yaml"]


def test_scans_that_nobody_has_labelled_are_planned_for(
    plan: Plan, phantoms: Path, tmp_path: Path
) -> None:
    as_folder(phantoms, tmp_path / "scans")
    scans = (f"data.root={tmp_path / 'scans'}", "data.classes=[liver,tumour]")
    done = plan(*scans)
    assert done.exit_code == 0, done.err
    assert "s a step" in done.out
    for settings in (("oracle=person",), ("data/splits=growing", "oracle=person")):
        campaign = plan(*scans, *settings, "measure=false")
        assert campaign.exit_code == 0, campaign.err
        assert yaml.safe_load(campaign.out) == yaml.safe_load(done.out)


def test_images_of_the_test_part_steer_nothing(plan: Plan, tmp_path: Path) -> None:
    def data_set(name: str, last: int) -> Path:
        sizes = [16] * 11 + [last]
        volumes = [np.arange(n**3, dtype=np.float32).reshape(n, n, n) for n in sizes]
        root = write_msd(tmp_path / name, volumes, [(v > 99).astype(np.uint8) for v in volumes])
        ids = [f"case_{n:02d}" for n in range(12)]
        parts = {"training": ids[:9], "validation": ids[9:11], "test": ids[11:]}
        (root / "split.json").write_text(json.dumps(parts))
        return root

    one = plan(f"data.root={data_set('one', 16)}", "measure=false")
    other = plan(f"data.root={data_set('other', 40)}", "measure=false")
    assert one.exit_code == 0, one.err
    assert "9 images" in one.out
    assert one.out == other.out


def test_nothing_is_planned_where_nothing_is_auto(plan: Plan) -> None:
    done = plan("data=phantom", numbers=())
    assert done.exit_code == 2
    assert "nothing is auto, so there is nothing to plan; use data=auto" in done.err


def test_the_planned_network_goes_with_other_data(train: Train) -> None:
    run = train("model=auto", "pool.rounds=1", "steps_per_round=2")
    assert run.exit_code == 0, run.err
    assert set(values_of(run)) >= {"model.strides", "model.kernel_size", "model.filters"}


def test_a_run_is_resumed_by_its_own_numbers(auto: Train, train: Train, phantoms: Path) -> None:
    run = auto(f"data.root={phantoms}")
    planned = (run.folder / "plan.yaml").read_bytes()
    again = train(resume=run.folder, smoke=False)
    assert again.exit_code == 0, again.err
    freely = train("pictures=1", resume=run.folder, smoke=False)  # composed again
    assert freely.exit_code == 0, freely.err
    assert (run.folder / "plan.yaml").read_bytes() == planned
    other = train("data.batch_size=5", resume=run.folder, smoke=False)
    assert other.exit_code == 2
    assert "data.batch_size: " in other.err
    assert "-> 5" in other.err


def test_jobs_of_a_sweep_have_plans_and_are_resumed(
    auto: Train, phantoms: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    command = (
        f"data.root={phantoms}",
        "strategy=random",
        "seed=1,2",
        f"hydra.sweep.dir={sweep}",
        "--multirun",
    )
    done = auto(*command)
    assert done.exit_code == 0, done.err
    first, second = (path.read_bytes() for path in sorted(sweep.glob("*/plan.yaml")))
    assert first == second
    again = auto(*command, "sweep.resume=true")
    assert again.exit_code == 0, again.err
    assert "finished before, not run again" in again.out + again.err


def test_validate_looks_at_a_data_set_as_the_plan_would(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alseg.validate import main

    monkeypatch.chdir(tmp_path)
    settings = ["data=auto", f"data.root={phantoms}", "workers=1", "json=report.json"]
    monkeypatch.setattr(sys, "argv", ["alseg.validate", *settings])
    main()
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["error"] == 0


def test_a_stored_order_of_axes_changes_no_plan(plan: Plan, tmp_path: Path) -> None:
    outputs = []
    for name, codes in (("ras", "RAS"), ("spr", "SPR")):
        volume = np.random.default_rng(0).normal(size=(24, 32, 6)).astype(np.float32)
        image = nibabel.Nifti1Image(volume, np.diag([2.0, 1.5, 9.0, 1.0]))
        ornt = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
        )
        stored = image.as_reoriented(ornt)
        voxels = np.asarray(stored.dataobj)
        root = write_msd(
            tmp_path / name, [voxels] * 10, [(voxels > 0).astype(np.uint8)] * 10,
            affines=[stored.affine] * 10,
        )  # fmt: skip
        outputs.append(plan(f"data.root={root}", "measure=false"))
    ras, spr = (yaml.safe_load(done.out) for done in outputs)
    assert ras["data.spacing_mm"] == spr["data.spacing_mm"] == [2.0, 1.5, 9.0]
    assert ras["data.patch_size"] == spr["data.patch_size"]
    assert ras["data.rotate_range"] == spr["data.rotate_range"] == [0.0, 0.0, 0.8]
