"""What a run folder from other hands may name, and what it may not."""

from __future__ import annotations

import ast
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from alseg.config.composition import conf_folder
from alseg.config.trust import DENIED, TRUSTED, check_targets, is_trusted, targets, within
from alseg.core.errors import ConfigError
from alseg.engine.maps import case_maps
from alseg.engine.runs import to_resume
from alseg.predict import main as predict
from tests.conftest import Outcome
from tests.smoke_runs import run_smoke

REFUSED = [
    "pandas.read_pickle",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "joblib.load",
    "numpy.load",
    "mlflow.utils.process._exec_cmd",
    "mlflow.pyfunc.load_model",
    "builtins.eval",
    "builtins.__import__",
    "eval",
    "os.system",
    "subprocess.run",
    "pathlib.Path.unlink",
    "shutil.rmtree",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "importlib.import_module",
    # of packages that are trusted in part
    "monai.bundle.run",
    "monai.bundle.download",
    "monai.bundle.ConfigParser",
    "monai.data.PersistentDataset",
    "monai.apps.download_and_extract",
    "monai.utils.optional_import",
    "monai.utils.module.instantiate",
    "monai.transforms.LoadImage",
    "monai.transforms.SaveImage",
    "monai.losses.PerceptualLoss",
    "monai.networks.utils.convert_to_onnx",
    "pytorch_lightning.LightningModule.load_from_checkpoint",
    "pytorch_lightning.plugins.io.TorchCheckpointIO",
    "alseg.config.composition.instantiate",
    "alseg.engine.jobs.run_in_fork",
    "alseg.system.files.read_tensors",
    # of alseg's parts that have to do with files
    "alseg.data.dicom.import_dicom",
    "alseg.data.naming._spelt_as_on_disk",
    "alseg.data.volumes.save_nifti",
    "alseg.oracles.answer_files.say_of_answer",
    "alseg.oracles.label_acceptance._write_copy",
    "alseg.tracking.mlflow_store.MLflowStore",
    # what a trusted module has imported, and methods
    "alseg.data.formats.msd.os.system",
    "alseg.data.phantom.shutil.rmtree",
    "alseg.tracking.mlflow.utils.process._exec_cmd",
    "monai.networks.nets.resnet.torch.load",
    "monai.transforms.utils.optional_import",
    "torch.nn.modules.module.torch.load",
    "torch.nn.Module.load_state_dict",
    "alseg.training.module.SegmentationModule.load_from_checkpoint",
    # no names
    "monai.transforms.",
    "alseg..data",
    ".",
    "",
    7,
    None,
    ["pandas.read_pickle"],
]


@pytest.mark.parametrize("target", REFUSED, ids=str)
def test_what_may_run_anything_is_refused_wherever_it_stands(target: Any) -> None:
    node = {"_target_": target, "_partial_": True, "path": "x"}
    for content in (node, {"a": {"b": node}}, {"a": [1, [{"c": node}]]}, {"a": {"_args_": [node]}}):
        with pytest.raises(ConfigError, match=r"_target_ is .* does not build"):
            check_targets({"strategy": content}, Path("config.yaml"))


@pytest.mark.parametrize(
    "target", ["alseg.strategies.selectors.top_k", "alseg.models.svgd.SVGD", "alseg.proxy.Proxy"]
)
def test_what_alseg_no_longer_has_tells_an_earlier_version(target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_targets({"strategy": {"selector": {"_target_": target}}}, Path("run/config.yaml"))
    assert str(caught.value) == (
        "run/config.yaml was made by an earlier version of alseg: strategy.selector._target_ is "
        f"{target}, which is no longer there; continue with that version, which provenance.json "
        "beside it names, or start the run again"
    )


def named_in_conf() -> set[str]:
    named = set()
    root = Path(conf_folder())
    for path in root.rglob("*.yaml"):
        # Hydra's own part is in no run folder
        if path.name != "config.yaml" and not path.is_relative_to(root / "hydra"):
            named |= {target for _, target in targets(yaml.safe_load(path.read_text()))}
    return named


def test_all_that_alsegs_own_yaml_names_is_trusted() -> None:
    named = named_in_conf()
    assert len(named) > 50
    assert [target for target in sorted(named) if not is_trusted(target)] == []


FILES = ("alseg.data", "alseg.oracles", "alseg.tracking")  # packages that have to do with files


def test_of_what_writes_files_only_what_alsegs_own_yaml_names_is_trusted() -> None:
    trusted = set()
    for package in FILES:
        for name in modules_of(package):
            module = import_module(name.removesuffix(".__init__"))
            own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == name}
            trusted |= {f"{name}.{each}" for each in own if is_trusted(f"{name}.{each}")}
    computing = ("alseg.data.folds", "alseg.data.splits")
    assert {name for name in trusted if not within(name, computing)} == {
        target
        for target in named_in_conf()
        if within(target, FILES) and not within(target, computing)
    }


def test_packages_that_the_user_names_are_trusted_but_not_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_measures.py").write_text("import torch\ndef doubt(statistics): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_trusted("own_measures.doubt")
    assert is_trusted("own_measures.doubt", ["own_measures"])
    assert not is_trusted("own_measures_2.doubt", ["own_measures"])
    assert not is_trusted("own_measures.torch.load", ["own_measures"])
    assert is_trusted("monai.transforms.LoadImage", ["monai.transforms.io", "monai.transforms"])
    assert is_trusted("monai.transforms.LoadImage", ["monai.transforms.LoadImage"])


RUNS_WHAT_IT_READS = re.compile(
    r"(locate|eval|exec|import_module|__import__|load_module)"
    r"|(.*\.)?(pickle|subprocess|cpp_extension)\.\w+|os\.system|torch\.load|torch\.hub\.load"
)
LOOKED_AT = {
    "monai.inferers.inferer": ["locate"],  # the merger of PatchInferer; builds Mergers only
    "monai.networks.nets.flexible_unet": ["locate"],  # for a registry of MONAI's own
}


def calls_that_run_what_they_read(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if not re.search(r"locate|eval\(|exec\(|import|hub|pickle|subprocess|system|torch\.load", text):
        return []
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = ast.unparse(call.func)
        safe = any(
            k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords
        )
        if RUNS_WHAT_IT_READS.fullmatch(name) and not safe:
            found.append(name)
    return found


def modules_of(package: str) -> dict[str, Path]:
    spec = find_spec(package)
    assert spec is not None
    origin = Path(str(spec.origin))
    if origin.name != "__init__.py":
        return {package: origin}
    paths = {
        path.relative_to(origin.parent).with_suffix(""): path
        for path in origin.parent.rglob("*.py")
    }
    return {".".join((package, *inner.parts)): path for inner, path in paths.items()}


def test_no_module_of_monai_that_is_trusted_runs_what_it_reads() -> None:
    found = {
        module: calls
        for package in TRUSTED
        if package.startswith("monai")
        for module, path in modules_of(package).items()
        if not within(module, DENIED) and (calls := calls_that_run_what_they_read(path))
    }
    assert found == LOOKED_AT
    for name in DENIED:  # they are seen
        assert any(map(calls_that_run_what_they_read, modules_of(name).values()))


@pytest.fixture(scope="module")
def one_round(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_round")
    run_smoke(folder, shared, "pool.rounds=1", "steps_per_round=1", "val_interval=1")
    return folder


@pytest.fixture
def foreign(one_round: Path, tmp_path: Path) -> Path:
    """A run of one round."""
    return shutil.copytree(one_round, tmp_path / "foreign")


def poison(folder: Path, *, strategy: bool = False) -> Path:
    """Let the trainer, or the strategy, of a run folder unpickle a file that leaves a mark."""
    mark, trap = folder / "mark", folder / "trap.pkl"
    trap.write_bytes(pickle.dumps(Trap(str(mark))))
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["trusted_packages"] = ["pandas"]  # not for the folder to say
    target = {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(trap)}
    if strategy:
        config["strategy"]["measure"] = target
    else:
        config["trainer"]["callbacks"] = [target]
    path.write_text(yaml.safe_dump(config))
    return mark


class Trap:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return open, (self.mark, "w")


def test_maps_of_a_run_folder_from_other_hands_run_nothing(foreign: Path) -> None:
    mark = poison(foreign, strategy=True)
    with pytest.raises(ConfigError, match=r"strategy\.measure\._target_ is 'pandas\.read_pickle'"):
        case_maps(foreign, 1, ["phantom_000"])
    assert not mark.exists()


def test_a_run_folder_from_other_hands_runs_nothing(
    train: Callable[..., Outcome], foreign: Path
) -> None:
    mark = poison(foreign)
    for force in ("false", "true"):
        run = train(f"resume_force={force}", smoke=False, resume=foreign)
        assert run.exit_code == 2
        (line,) = run.err.splitlines()
        assert (
            f"{foreign}/config.yaml: trainer.callbacks.0._target_ is 'pandas.read_pickle'" in line
        )
        assert line.endswith("add trusted_packages=[pandas]")
        assert not mark.exists()
    case_maps(foreign, 1, ["phantom_000"])  # builds no trainer
    assert not mark.exists()
    train("trusted_packages=[pandas]", smoke=False, resume=foreign)
    assert mark.exists()  # the trap works: the user has asked for it
    bad = train("trusted_packages=pandas", smoke=False, resume=foreign)
    assert bad.exit_code == 2
    assert "trusted_packages is 'pandas'; it must be a list of names" in bad.err


def test_a_run_folder_from_other_hands_writes_no_file_of_its_choice(
    foreign: Path,
    phantoms: Path,
    tmp_path: Path,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # bytes of the folder's choice into a file that a shell runs
    path = {
        "_target_": "alseg.data.naming._spelt_as_on_disk",
        "folder": {"_target_": "alseg.data.formats.dataset_json.data_folder", "root": str(home)},
        "relative": ".bashrc",
    }
    config = yaml.safe_load((foreign / "config.yaml").read_text())
    config["model"]["network"]["act"] = {
        "_target_": "alseg.oracles.label_acceptance._write_copy",
        "content": b"touch mark\n",
        "is_compressed": True,
        "path": path,
    }
    (foreign / "config.yaml").write_text(yaml.safe_dump(config))
    exit_code, _, err = call_entry_point(
        predict, str(foreign), f"images={phantoms / 'imagesTr'}", f"output={tmp_path / 'out'}"
    )
    assert not (home / ".bashrc").exists()
    assert exit_code == 2
    assert "model.network.act._target_ is 'alseg.oracles.label_acceptance._write_copy'" in err
    assert err.strip().endswith("add trusted_packages=[alseg.oracles.label_acceptance._write_copy]")


@pytest.mark.parametrize("name", ["run.log", "rounds", "rounds/round_01/cases.csv", ".lock"])
def test_no_link_in_a_run_folder_from_other_hands_is_written_through(
    train: Callable[..., Outcome], foreign: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "elsewhere"
    if name == "rounds":
        shutil.move(foreign / name, target)
    else:
        target.write_text("mine")
        (foreign / name).unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (foreign / name).symlink_to(target)
    run = train("pool.rounds=2", "resume_force=true", smoke=False, resume=foreign)
    assert run.exit_code == 2
    assert f"{foreign / name} is a link to {target}, out of {foreign}" in run.err
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert target.is_dir() or target.read_text() == "mine"


def test_interpolations_in_a_run_folder_mean_nothing(
    train: Callable[..., Outcome], foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "pandas.read_pickle")
    path = foreign / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["tracking"]["_target_"] = "${oc.env:SECRET_OF_MINE}"
    path.write_text(yaml.safe_dump(config))
    run = train(smoke=False, resume=foreign)
    assert run.exit_code == 2
    assert "tracking._target_ is '${oc.env:SECRET_OF_MINE}'" in run.err


def test_a_run_with_functions_of_ones_own_goes_on_with_the_printed_command(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Outcome]
) -> None:
    example = Path(__file__).parents[2] / "scripts" / "own_strategy"
    monkeypatch.syspath_prepend(str(example))
    own = (f"hydra.searchpath=[file://{example / 'conf'}]", "strategy=tumour_doubt")
    run_smoke(tmp_path, shared, *own, "pool.rounds=1", "steps_per_round=1", "val_interval=1")
    _, named = shlex.split(to_resume(tmp_path))
    assert train(smoke=False, resume=tmp_path).exit_code == 2
    run = train(named, smoke=False, resume=tmp_path)
    assert run.exit_code == 0, run.err
