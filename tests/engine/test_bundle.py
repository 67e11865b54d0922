"""``python -m alseg.export`` through its front door; bundles run where nobody can import alseg."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from omegaconf import OmegaConf

from alseg.config.composition import conf_folder, instantiate
from alseg.core.errors import ConfigError
from alseg.engine.bundle import as_dictionary_transform, check_is_monais, check_is_plain, datalist
from alseg.predict import main as predict
from alseg.system.files import read_json, write_json
from tests.conftest import Outcome
from tests.planning.builders import with_a_plan
from tests.run_folders import settle
from tests.smoke_runs import run_smoke

Export = Callable[..., Outcome]
DATA = sorted(path.stem for path in Path(conf_folder(), "data").glob("*.yaml"))
WITHOUT_ALSEG = """
import sys
sys.modules["alseg"] = None  # whoever imports it fails
import torch
from monai.bundle import ConfigParser
root, images, output = sys.argv[1:]
parser = ConfigParser()
parser.read_config(f"{root}/configs/inference.json")
parser.read_meta(f"{root}/configs/metadata.json")
parser.update({"bundle_root": root, "dataset_dir": images, "output_dir": output})
network = parser.get_parsed_content("network")
network.load_state_dict(torch.load(f"{root}/models/model.pt", weights_only=True))
network.eval()
inferer, post = (parser.get_parsed_content(name) for name in ("inferer", "postprocessing"))
with torch.no_grad():
    for item in parser.get_parsed_content("dataset"):
        logits = inferer(item["image"][None], network)[0]
        post({"pred": logits, "source": item["source"]})
assert parser.get_parsed_content("_meta_::version") == "0.1.0"
"""
WORKFLOW = """
import sys
sys.modules["alseg"] = None
from monai.bundle import ConfigWorkflow
root, images, output = sys.argv[1:]
workflow = ConfigWorkflow(
    f"{root}/configs/inference.json", workflow_type="infer",
    bundle_root=root, dataset_dir=images, output_dir=output,
)
workflow.initialize()
assert workflow.check_properties() == []
workflow.run()
workflow.finalize()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The folder of a run whose preprocessing resamples; a committee, of which one is reported."""
    folder = tmp_path_factory.mktemp("run")
    settings = ("steps_per_round=20", "val_interval=10", "data.spacing_mm=[12,9,11]")
    committee = ("strategy=variance", "uncertainty=svgd", "uncertainty.n_particles=2")
    run_smoke(folder, shared, *committee, *settings)
    return folder


@pytest.fixture
def export(
    run: Path,
    tmp_path: Path,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Export:
    """Call ``python -m alseg.export RUN bundle=bundle`` in this process."""
    from alseg.export import main

    def call(*overrides: str, of: Path = run) -> Outcome:
        folder = tmp_path / "bundle"
        return Outcome(*call_entry_point(main, str(of), f"bundle={folder}", *overrides), folder)

    return call


@pytest.mark.parametrize("code", [WITHOUT_ALSEG, WORKFLOW], ids=["parts", "workflow"])
def test_a_bundle_segments_as_alseg_does_without_alseg(
    export: Export,
    run: Path,
    shared: Path,
    tmp_path: Path,
    code: str,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> None:
    if code is WORKFLOW and find_spec("ignite") is None:
        pytest.skip("MONAI's workflow needs pytorch-ignite")
    done = export()
    assert done.exit_code == 0, done.err
    (dataset,) = shared.rglob("dataset.json")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        shutil.copy(dataset.parent / "imagesTr" / f"phantom_{index:03d}.nii.gz", images)
    one, other = tmp_path / "with_alseg", tmp_path / "without"
    settings = (str(run), f"images={images}", f"output={one}", "trainer=cpu")
    exit_code, _, err = call_entry_point(predict, *settings)
    assert exit_code == 0, err
    arguments = [str(folder) for folder in (done.folder, images, other)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path)
    names = sorted(path.name for path in images.iterdir())
    assert sorted(path.name for path in other.iterdir()) == names
    found = 0
    for name in names:
        ours, theirs = (nibabel.load(folder / name) for folder in (one, other))
        assert theirs.get_data_dtype() == np.uint8
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
        found += np.count_nonzero(np.asarray(ours.dataobj))
    assert found > 0


def test_a_bundle_has_the_files_of_the_specification(export: Export, run: Path) -> None:
    done = export("round=1")
    assert done.exit_code == 0, done.err
    files = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    assert files == {
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md",
        "models/model.pt",
    }  # fmt: skip
    metadata = json.loads((done.folder / "configs/metadata.json").read_text())
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "1": "liver", "2": "tumour"}
    readme = (done.folder / "docs/README.md").read_text()
    dice = read_json(run / "state.json")["history"][0]["val_dice"]
    assert "The network of round 1 of a run of alseg" in readme
    assert f"Mean foreground Dice, in the files of the images: validation {dice:.3f}" in readme
    assert "mean prediction" not in readme
    assert "alseg." not in (done.folder / "configs/inference.json").read_text()
    weights = torch.load(done.folder / "models/model.pt", weights_only=True)
    assert not [name for name in weights if name.startswith(("particles", "network."))]


@pytest.mark.parametrize("choice", DATA)
def test_the_preprocessing_of_each_data_configuration_is_the_same_in_a_bundle(choice: str) -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = with_a_plan(compose("config", [f"data={choice}"]))
    nodes: Any = [OmegaConf.to_container(node, resolve=True) for node in config.data.preprocess]
    parser = ConfigParser({"all": [as_dictionary_transform(node) for node in nodes]})
    rng = torch.Generator().manual_seed(0)
    affine = torch.tensor([[0, -2.0, 0, 5], [1.5, 0, 0.2, -7], [0, 0.1, 3, 11], [0, 0, 0, 1]])
    image = MetaTensor(150 * torch.randn(1, 14, 12, 10, generator=rng), affine=affine.double())
    theirs = Compose(parser.get_parsed_content("all"))({"image": image.clone()})["image"]
    ours = Compose(instantiate(config.data.preprocess))(image.clone())
    torch.testing.assert_close(theirs.as_tensor(), ours.as_tensor())
    torch.testing.assert_close(theirs.affine, ours.affine)


def test_files_by_channel_are_listed_together(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    content = {"imports": ["$import glob"], "dataset_dir": str(tmp_path), "list": datalist(2)}
    found = ConfigParser(content)
    found.get_parsed_content("imports")
    names = [[Path(p).name for p in item["image"]] for item in found.get_parsed_content("list")]
    assert names == [["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0000.nii.gz", "b_0001.nii.gz"]]


def check(done: Outcome, message: str) -> None:
    assert done.exit_code == 2
    assert "Traceback" not in done.err + done.out
    assert message in done.err
    assert not list(done.folder.parent.glob(".tmp-*"))


def test_nothing_is_overwritten(export: Export, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.write_text("a file")
    check(export(), "bundle, which is not an empty folder; give a new one")
    folder.unlink()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    check(export(), "which is not an empty folder")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    assert export().exit_code == 0  # an empty one will do
    check(export("round=7"), "which is not an empty folder")


def test_what_a_bundle_cannot_hold_is_reported(
    export: Export, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages"
    package.mkdir()
    (package / "own_nets.py").write_text(
        "from monai.networks.nets import UNet\ndef net(**settings): return UNet(**settings)\n"
    )
    monkeypatch.syspath_prepend(str(package))
    own = shutil.copytree(run, tmp_path / "own")
    text = (own / "config.yaml").read_text()
    (own / "config.yaml").write_text(text.replace("monai.networks.nets.UNet", "own_nets.net"))
    settle(own)
    check(export(of=own), "add trusted_packages=[own_nets]")
    check(export("trusted_packages=[own_nets]", of=own), "the run's settings name own_nets.net")
    hostile = shutil.copytree(run, tmp_path / "hostile")
    task = read_json(hostile / "task.json")
    classes = ["background", "$__import__('os').mkdir('made')", "tumour"]
    write_json(hostile / "task.json", task | {"classes": classes})
    check(export(of=hostile), "which a MONAI bundle would take for an expression and run")
    assert not Path("made").exists()
    check(export(of=tmp_path / "nowhere"), "nowhere is not a run folder")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "monai.transforms.Orientation", "pixdim": 1}, "sets pixdim of"),
        ({"_target_": "monai.transforms.Compose"}, "has no transform of dictionaries"),
        ({"_target_": "alseg.data.similarity.Turn"}, "has no transform of dictionaries"),
    ],
)
def test_transforms_that_monai_lacks_are_reported(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_dictionary_transform(node)


@pytest.mark.parametrize("text", ["$import os", "%other.json", "@network", "a @b"])
def test_text_that_means_something_to_a_bundle_is_refused_wherever_it_stands(text: str) -> None:
    for content in (text, {"a": [text]}, {text: 1}, [[{"b": text}]]):
        with pytest.raises(ConfigError, match="take for an expression"):
            check_is_plain(content)
    check_is_plain({"a": ["plain", 1, None, 0.5, {"b": "100% of $5"}]})


def test_hydras_own_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="_partial_, which a MONAI bundle cannot say"):
        check_is_monais({"_target_": "monai.networks.nets.UNet", "act": {"_partial_": True}})
