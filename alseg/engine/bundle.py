"""Writes the best network of a run as a MONAI bundle, which works without alseg.

What the bundle's configuration builds is of MONAI and torch: the run's preprocessing as transforms
of dictionaries, its network and its inferer. As ``alseg.engine.predict``, it brings probabilities
to the grid of the source image before it takes the most likely class.

Source: the MONAI bundle specification, https://docs.monai.io/en/stable/bundle/mb_specification.html
"""

from __future__ import annotations

import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai.transforms
import torch
from omegaconf import DictConfig, OmegaConf

from alseg import __version__
from alseg.config.trust import targets, within
from alseg.core.errors import ConfigError, check_text
from alseg.engine.new_folder import check_new, new_folder
from alseg.engine.trained_run import TrainedRun, load_trained
from alseg.networks.committee import reported_network
from alseg.run.measure import TEST, validation_of
from alseg.system.console import say
from alseg.system.files import replacing, write_atomically
from alseg.training.evaluation import GRID

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
IGNITE = "0.5.5"  # which the workflow was tried with
ALLOWED = ("monai", "torch")  # whose classes a bundle may name
IMAGE, SOURCE, PREDICTION = "image", "source", "pred"
HYDRAS = ("_partial_", "_convert_", "_recursive_", "_args_")  # words of Hydra's, not of MONAI's


def export(config: DictConfig) -> Path:
    """Write the bundle that conf/export.yaml describes, and say how to use it.

    Returns:
        The folder of the bundle.

    Raises:
        AlsegError: with one clear sentence, if there is no network, the folder holds something, or
            the run needs more than MONAI and torch.
    """
    check_text("bundle", config.bundle)
    folder = Path(config.bundle).expanduser()
    check_new("bundle", folder)
    run = load_trained(config.run, config.round, config.trusted_packages)
    inference = inference_config(run)
    metadata = metadata_of(run)
    for content in (inference["preprocessing"], inference["network_def"], inference["inferer"]):
        check_is_monais(content)
    check_is_plain(metadata)
    with new_folder(folder) as temporary:
        write_bundle(temporary, run, inference, metadata)
    say(f"wrote the network of round {run.round_number} of {run.folder} as a bundle: {folder}")
    say(f"how to use it: {folder / 'docs' / 'README.md'}")
    return folder


def write_bundle(
    folder: Path, run: TrainedRun, inference: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Write all files of a bundle."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    write_atomically(folder / "configs" / "metadata.json", json.dumps(metadata, indent=2))
    write_atomically(folder / "configs" / "inference.json", json.dumps(inference, indent=2))
    with replacing(folder / "models" / "model.pt") as file:
        torch.save(reported_network(run.network).state_dict(), file)
    write_atomically(folder / "docs" / "README.md", readme(run))
    write_atomically(folder / "LICENSE", license_note(run))


def inference_config(run: TrainedRun) -> dict[str, Any]:
    """The content of configs/inference.json."""
    data: Any = OmegaConf.to_container(run.config.data, resolve=True)
    network: Any = OmegaConf.to_container(run.config.model.network, resolve=True)
    n_channels, n_classes = len(run.task.channels), len(run.task.classes)
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/segmented'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": datalist(n_channels),
        "network_def": network | {"in_channels": n_channels, "out_channels": n_classes},
        "network": "$@network_def.to(@device)",
        "preprocessing": in_sequence(
            transform("LoadImage", IMAGE, ensure_channel_first=True, reader="NibabelReader"),
            transform("CopyItems", IMAGE, times=1, names=[SOURCE]),
            *(as_dictionary_transform(node) for node in data["preprocess"]),
        ),
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "@datalist",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "num_workers": 0,
        },
        "inferer": data["inferer"],
        "postprocessing": postprocessing(n_classes),
        "handlers": [
            {
                "_target_": "monai.handlers.CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def datalist(n_channels: int) -> str:
    """The expression that lists the images of ``dataset_dir``, one file a case or a channel."""
    if n_channels == 1:
        return f"$[{{'{IMAGE}': p}} for p in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"
    files = f"[p.replace('_0000.nii', '_%04d.nii' % c) for c in range({n_channels})]"
    return f"$[{{'{IMAGE}': {files}}} for p in sorted(glob.glob(@dataset_dir + '/*_0000.nii*'))]"


def postprocessing(n_classes: int) -> dict[str, Any]:
    """From logits to a label map on the grid of the source image, in a file."""
    return in_sequence(
        transform("Activations", PREDICTION, softmax=True),
        transform(
            "ResampleToMatch",
            PREDICTION,
            key_dst=SOURCE,
            mode="bilinear",
            padding_mode="zeros",
        ),
        transform("AsDiscrete", PREDICTION, argmax=True),
        transform(
            "SaveImage",
            PREDICTION,
            output_dir="@output_dir",
            output_postfix="",
            separate_folder=False,
            output_dtype="uint8" if n_classes <= 256 else "int32",
            resample=False,
        ),
    )


def in_sequence(*transforms: dict[str, Any]) -> dict[str, Any]:
    """Transforms one after another."""
    return {"_target_": "monai.transforms.Compose", "transforms": list(transforms)}


def transform(name: str, key: str, **arguments: Any) -> dict[str, Any]:
    """MONAI's transform of dictionaries of that name, for one key."""
    return {"_target_": f"monai.transforms.{name}d", "keys": [key], **arguments}


def as_dictionary_transform(node: dict[str, Any]) -> dict[str, Any]:
    """A transform of the run's preprocessing as MONAI's transform of dictionaries.

    Raises:
        ConfigError: if MONAI has none that takes the same settings.
    """
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    target = str(node["_target_"])
    name = target.rpartition(".")[2]
    kind = getattr(monai.transforms, f"{name}d", None)
    if not within(target, ["monai.transforms"]) or not inspect.isclass(kind):
        raise ConfigError(
            f"data.preprocess names {target}, of which MONAI has no transform of dictionaries, "
            "which a bundle needs"
        )
    allowed = inspect.signature(kind).parameters
    if unknown := [argument for argument in arguments if argument not in allowed]:
        raise ConfigError(
            f"data.preprocess sets {', '.join(unknown)} of {target}, which MONAI's {name}d, which "
            "a bundle needs, does not take"
        )
    if "source_key" in allowed:
        arguments["source_key"] = IMAGE
    return transform(name, IMAGE, **arguments)


def check_is_monais(content: Any) -> None:
    """Check that a part of the bundle is built by MONAI and torch, and is plain.

    Raises:
        ConfigError: naming what is not.
    """
    for _, target in targets(content):
        if not within(str(target), ALLOWED):
            raise ConfigError(
                f"the run's settings name {target}, and a bundle works with MONAI and torch only; "
                "use python -m alseg.predict, which needs alseg and your packages"
            )
    check_is_plain(content)


def check_is_plain(content: Any) -> None:
    """Check that no text of a run means something to the reader of a bundle, who runs ``$``.

    Raises:
        ConfigError: naming the text that does, or a setting in Hydra's own words.
    """
    if isinstance(content, dict):
        for key in content:
            if key in HYDRAS:
                raise ConfigError(f"the run's settings hold {key}, which a MONAI bundle cannot say")
        content = [*content, *content.values()]
    if isinstance(content, list):
        for each in content:
            check_is_plain(each)
    elif isinstance(content, str) and (content.startswith(("$", "%")) or "@" in content):
        raise ConfigError(
            f"the run's settings hold the text {content!r}, which a MONAI bundle would take for an "
            "expression and run"
        )


def metadata_of(run: TrainedRun) -> dict[str, Any]:
    """The content of configs/metadata.json."""
    n_channels, task = len(run.task.channels), run.task
    shape = OmegaConf.to_container(run.config.data.patch_size)
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": ", ".join(task.channels),
        "num_channels": n_channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(task.channels)},
    }
    prediction = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(task.classes),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(task.classes)},
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"round {run.round_number} of a run of alseg {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "pytorch-ignite": IGNITE},
        "name": task.name,
        "task": f"segmentation of {', '.join(task.foreground)}",
        "description": "A network of an active-learning run: see docs/README.md",
        "authors": "",
        "copyright": "see LICENSE",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }


def readme(run: TrainedRun) -> str:
    """docs/README.md: what it is, how good it was, how it is used."""
    row = run.metrics
    parts = [part for part in (validation_of(row), TEST) if part.column in row]
    known = [f"{part.name} {row[part.column]:.3f}" for part in parts]
    files = (
        "one file a case"
        if len(run.task.channels) == 1
        else "CASE_0000.nii.gz, CASE_0001.nii.gz ... a case: " + ", ".join(run.task.channels)
    )
    classes = "\n".join(f"- {value}: {name}" for value, name in enumerate(run.task.classes))
    return README.format(
        name=run.task.name,
        round=run.round_number,
        labelled=row["labelled"],
        where="on the preprocessed grid" if run.space == GRID else "in the files of the images",
        dice=", ".join(known),
        of_several=OF_SEVERAL.format(run.n_evaluated) if run.n_evaluated > 1 else "",
        classes=classes,
        files=files,
        version=__version__,
    )


def license_note(run: TrainedRun) -> str:
    """LICENSE: who decides what the weights may be used for."""
    return (
        f"The weights in models/ were trained on the data set {run.task.name}. What they may be\n"
        "used for, and under which name they may be passed on, follows from the licence of that\n"
        "data set and from you who trained them: write it here before you pass the bundle on.\n\n"
        "The configuration was written by alseg (Apache License 2.0).\n"
    )


OF_SEVERAL = " That is of the mean prediction of {} networks, the first of which is here."
README = """# {name}

The network of round {round} of a run of alseg {version}, trained on {labelled} annotated volumes.
Mean foreground Dice, {where}: {dice}.{of_several} It is not a medical device.

Classes:

{classes}

## Use

Needs MONAI, nibabel and pytorch-ignite (and `fire` for the command). Images are NIfTI, {files}:

```bash
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir /path/to/images --output_dir /path/to/segmented
```

or from Python, without `fire`:

```python
from monai.bundle import ConfigWorkflow

workflow = ConfigWorkflow(
    "configs/inference.json", workflow_type="infer",
    bundle_root=".", dataset_dir="/path/to/images", output_dir="/path/to/segmented",
)
workflow.initialize()
workflow.run()
workflow.finalize()
```

Label maps lie on the grid of their images. Without pytorch-ignite, the parts `preprocessing`,
`network_def` (weights: models/model.pt), `inferer` and `postprocessing` work by themselves.
"""
