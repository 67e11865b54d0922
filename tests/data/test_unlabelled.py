"""Cases without a label: read, kept out of a simulation, offered to a person."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from alseg.config.build import build_data, build_splits, check_hidden_labels
from alseg.config.composition import composed, instantiate
from alseg.core.errors import ConfigError, DataError
from alseg.core.units import whole
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.headers import check_headers
from alseg.data.survey import Facts, left_out, look_at
from alseg.data.task import Task
from alseg.oracles.simulated import SimulatedOracle
from alseg.run.state import RunState
from tests.data.builders import touch, touch_msd, touch_nnunet, write_json

NAMES = [f"case_{i:02d}" for i in range(6)]


class Person(SimulatedOracle):
    annotates_unlabelled = True


def test_the_test_list_of_msd_holds_cases_without_a_label(tmp_path: Path) -> None:
    for place in ("imagesTs/new", "imagesTs/case_00", "imagesTs/p1/new"):
        touch(tmp_path / f"{place}.nii.gz")
    listed = ["imagesTs/case_00", "imagesTs/new", "imagesTr/case_01", "imagesTs/gone", "../out"]
    task = read_msd(touch_msd(tmp_path, NAMES, test=[f"./{name}.nii.gz" for name in listed]))
    assert task.unlabelled == ["imagesTs_case_00", "new"]
    assert task.labelled == NAMES
    assert task.cases["new"].images == (tmp_path / "imagesTs" / "new.nii.gz",)
    messages = [finding.message for finding in task.findings]
    assert any("lists 1 image that 'training' lists as well" in m for m in messages)
    assert any("2 images that are not there" in m and "gone" in m for m in messages)


def test_a_copy_of_msd_without_its_test_images_is_fine(tmp_path: Path) -> None:
    task = read_msd(touch_msd(tmp_path, NAMES, test=["./imagesTs/a.nii.gz", {"image": "b"}]))
    assert (task.unlabelled, task.findings) == ([], ())


def test_images_of_nnunet_without_a_label_are_cases(tmp_path: Path) -> None:
    root = touch_nnunet(tmp_path, NAMES, ["T1", "T2"], numTraining=4)
    for name in NAMES[:2]:
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    assert read_nnunet(root).unlabelled == NAMES[:2]
    (root / "imagesTr" / "case_00_0001.nii.gz").unlink()
    task = read_nnunet(root)
    assert task.unlabelled == NAMES[1:2]
    (finding,) = task.findings
    assert finding.message.startswith("1 case of imagesTr without a label and not all channels")
    shutil.rmtree(root / "labelsTr")
    assert read_nnunet(root).unlabelled == NAMES[1:]
    shutil.rmtree(root / "imagesTr")
    with pytest.raises(DataError, match="holds no cases"):
        read_nnunet(root)


def test_the_simulated_oracle_reveals_labels_that_exist_and_no_others(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs" / "new.nii.gz")
    task = read_msd(touch_msd(tmp_path, NAMES, test=["imagesTs/new.nii.gz"]))
    oracle = SimulatedOracle(task)
    assert set(oracle.peek(NAMES)) == set(NAMES)
    for ask in (lambda: oracle.annotate(whole(["new"])), lambda: oracle.peek(["new"])):
        with pytest.raises(DataError, match=r"the case new .*new\.nii\.gz\) has no label"):
            ask()


@pytest.fixture
def bare(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, four of them under 'test' and without a label file."""
    root = shutil.copytree(phantoms, tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    entries = content["training"]
    for entry in entries[:4]:
        (root / entry["label"]).unlink()
    content |= {
        "training": entries[4:],
        "numTraining": 8,
        "test": [e["image"] for e in entries[:4]],
    }
    content["numTest"] = 4
    write_json(root / "dataset.json", content)
    return root


def config_of(root: Path, *overrides: str) -> tuple[DictConfig, Task]:
    config = composed(
        ["experiment=smoke", f"data.task.root={root}", f"cache_dir={root}/cache", *overrides]
    )
    return config, read_msd(root)


def test_a_simulation_splits_what_is_labelled_and_names_the_rest(
    bare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, task = config_of(bare)
    splits = build_data(config, task, SimulatedOracle(task)).splits
    assert sorted((*splits.training, *splits.validation, *splits.test)) == task.labelled
    assert "4 cases without a label, left out of the simulation" in caplog.text


def file_split(root: Path, task: Task, **parts: list[str]) -> str:
    ids = task.labelled
    usual = {"training": ids[2:], "validation": ids[:1], "test": ids[1:2]}
    write_json(root / "split.json", usual | parts)
    return f"data.split_file={root / 'split.json'}"


def test_a_person_gets_all_cases_but_evaluates_on_labelled_ones(
    bare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = read_msd(bare)
    everything = [*task.unlabelled, *task.labelled[2:]]
    setting = file_split(bare, task, training=everything)
    config, task = config_of(bare, "data/splits=file", setting)
    assert list(build_data(config, task, Person(task)).splits.training) == everything
    assert "left out" not in caplog.text
    for name in ("validation", "test"):
        file_split(bare, task, **{name: task.unlabelled[:1], "training": task.labelled[2:]})
        with pytest.raises(DataError, match=rf"the {name} part .* 1 case without a label: "):
            build_splits(config, task, Person(task))
        with pytest.raises(
            InstantiationException, match=rf"'{name}' names .*label that a simulation needs"
        ):
            build_splits(config, task, SimulatedOracle(task))


def test_a_simulation_without_any_label_is_refused(bare: Path) -> None:
    config, task = config_of(bare)
    cases = {i: task.cases[i] for i in task.unlabelled}
    task = Task(task.name, task.root, task.channels, task.classes, cases)
    with pytest.raises(DataError, match=r"no case of .* has a label.*oracle=person"):
        build_splits(config, task, SimulatedOracle(task))


@pytest.mark.parametrize("name", ["oracle_dice", "entropy"])
def test_a_strategy_that_reads_hidden_labels_is_refused_where_a_person_annotates(
    bare: Path, name: str
) -> None:
    config, task = config_of(bare, f"strategy={name}")
    strategy = instantiate(config.strategy)
    check_hidden_labels(strategy, SimulatedOracle(task))
    if strategy.reads_labels:
        with pytest.raises(ConfigError, match="reads labels that nobody has made yet"):
            check_hidden_labels(strategy, Person(task))
    else:
        check_hidden_labels(strategy, Person(task))


def test_an_unlabelled_image_is_looked_at_and_its_label_is_not(bare: Path) -> None:
    _, task = config_of(bare)
    case_id = task.unlabelled[0]
    facts = look_at(VolumeCache(task, [], "", bare / "cache"), case_id)
    assert isinstance(facts, Facts)
    assert facts.label is None
    assert np.isfinite(facts.quantiles).all()
    check_headers(task, [case_id], labels=False)
    with pytest.raises(DataError, match=f"the case {case_id} .* has no label"):
        check_headers(task, [case_id], labels=True)
    assert left_out(task)[0].message.endswith("oracle=person can ask for them")


def test_a_simulated_run_ends_as_if_the_unlabelled_cases_were_not_there(
    bare: Path, train: Callable
) -> None:
    with_them = train(f"data.task.root={bare}")
    assert with_them.exit_code == 0
    assert "4 cases without a label" in with_them.err + with_them.out
    content = json.loads((bare / "dataset.json").read_text())
    write_json(bare / "dataset.json", content | {"test": [], "numTest": 0})
    without = train(f"data.task.root={bare}")
    assert "no label" not in without.err + without.out
    first, second = RunState.load(with_them.folder), RunState.load(without.folder)
    assert (first.history, first.queries, first.pool) == (
        second.history, second.queries, second.pool,
    )  # fmt: skip
