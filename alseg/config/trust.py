"""Which functions and classes the configuration of a run folder may name.

A run folder can come from somebody else; its ``config.yaml`` names by ``_target_`` what is built
when the run is resumed or its maps are made. Only what computes is built unasked: no function that
unpickles, starts a program, imports by name or reads a file of the configuration's choice. What the
user composes on the command line is the user's own and not checked.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from alseg.config.earlier_versions import of_an_earlier_version
from alseg.core.errors import ConfigError

# Modules with all below them, classes and functions that are built. Of packages of alseg that have
# to do with files only what conf/ names: the rest would write wherever a configuration says.
TRUSTED = (
    "alseg.active.proxy_settings",
    "alseg.active.pseudo_labels",
    "alseg.data.folds",
    "alseg.data.formats.detected.read_detected",
    "alseg.data.formats.folder.read_folder",
    "alseg.data.formats.msd.read_msd",
    "alseg.data.formats.nnunet.read_nnunet",
    "alseg.data.phantom.write_phantom_dataset",
    "alseg.data.pseudo_labelled.IntensityLabel",
    "alseg.data.splits",
    "alseg.networks",
    "alseg.oracles.person.PersonOracle",
    "alseg.oracles.simulated.SimulatedOracle",
    "alseg.scoring",
    "alseg.strategies",
    "alseg.tracking.csv.CSVTracker",
    "alseg.tracking.mlflow.MLflowTracker",
    "alseg.tracking.tensorboard.TensorBoardTracker",
    "alseg.tracking.wandb.WandbTracker",
    "alseg.training.module",
    "alseg.training.svgd",
    "alseg.training.trainers",
    "alseg.training.weighting",
    "monai.inferers",
    "monai.losses",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.networks.nets",
    "monai.networks.schedulers",
    "monai.optimizers",
    "monai.transforms",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.plugins.precision",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies.ddp",
    "torch.nn",
    "torch.optim",
)
# Modules among them that do more than compute.
DENIED = (
    "monai.losses.perceptual",  # runs code that it downloads
    "monai.networks.layers.gmm",  # starts a compiler
    "monai.transforms.io",  # builds whatever class the name of a reader or writer gives
)


def check_targets(content: Any, source: Path, named: Collection[str] = ()) -> None:
    """Check what a configuration would build, before any of it is imported or built.

    Args:
        content: the resolved configuration, as plain dicts and lists.
        source: the file that it comes from.
        named: packages, modules, functions and classes that the user has named as trusted.

    Raises:
        ConfigError: naming the first function or class that is not trusted, or that alseg no longer
            has.
    """
    for setting, target in targets(content):
        if is_ours(target) and located(target) is None:
            raise of_an_earlier_version(source, f"{setting} is {target}, which is no longer there")
        if not is_trusted(target, named):
            package = str(target).partition(".")[0]
            in_part = {name.partition(".")[0] for name in (*TRUSTED, *named)}
            name = target if package in in_part else package  # never all of what is trusted in part
            is_name = re.fullmatch(r"\w+(\.\w+)*", str(target)) is not None
            raise ConfigError(
                f"{source}: {setting} is {target!r}, which alseg does not build from a file that "
                "somebody else may have written, as it may run anything"
                + "; if the file is your own, or you know what this does, add "
                f"trusted_packages=[{name}]" * is_name
            )


def untrusted(content: Any) -> list[str]:
    """The functions and classes of a configuration that are built only if the user names them."""
    return sorted({str(target) for _, target in targets(content) if not is_trusted(target)})


def targets(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each ``_target_`` of a configuration, however deep, by its dotted name."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key == "_target_":
            yield name, value
        yield from targets(value, name)


def is_trusted(target: Any, named: Collection[str] = ()) -> bool:
    """Whether a ``_target_`` is of the user's packages, or computes and does nothing else."""
    if not isinstance(target, str):
        return False
    if within(target, named) and (target in named or within(home(target), named)):
        return True
    if not within(target, TRUSTED) or "._" in target:
        return False
    found = located(target)
    # a module's own public classes and functions: no method, nothing that the module has imported
    return (
        (inspect.isclass(found) or inspect.isfunction(found))
        and "." not in found.__qualname__
        and within(f"{found.__module__}.{found.__qualname__}", TRUSTED)
        and not within(found.__module__, DENIED)
    )


def is_ours(target: Any) -> bool:
    """Whether a ``_target_`` is a public name in alseg, be there something of that name or not."""
    return isinstance(target, str) and re.fullmatch(r"alseg(\.[A-Za-z]\w*)+", target) is not None


def within(name: str, modules: Collection[str]) -> bool:
    """Whether a dotted name is one of these, or below one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def home(target: str) -> str:
    """The module that the object of a dotted name is made in; empty if it is not there."""
    return str(getattr(located(target), "__module__", ""))


def located(target: str) -> Any:
    """The object of a dotted name, whose modules are imported; None if it is not there."""
    first, *rest = target.split(".")
    try:
        found: Any = import_module(first)
        for depth, name in enumerate(rest, start=2):
            if not hasattr(found, name) and inspect.ismodule(found):
                import_module(".".join(target.split(".")[:depth]))
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found
