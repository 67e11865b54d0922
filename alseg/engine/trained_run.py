"""A trained network of a run, from the run folder only: no data set is needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from alseg.config.build import build_inferers, build_network, build_strategy
from alseg.config.composition import instantiate
from alseg.config.earlier_versions import check_moved
from alseg.config.settings import config_hash, flat, load_config
from alseg.config.trust import check_targets
from alseg.core.earlier_settings import AS_BEFORE
from alseg.core.errors import (
    ConfigError,
    DataError,
    check_names,
    check_part,
    check_text,
    check_whole_number,
)
from alseg.data.task import Task
from alseg.networks.mean_prediction import MeanPrediction
from alseg.run.folder import CONFIG_FILE, TASK_FILE, round_folder
from alseg.run.stages import check_unchanged, evaluated_columns
from alseg.run.state import RunState
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import UncertaintySource
from alseg.strategies.strategy import Strategy
from alseg.system.files import read_json, write_json
from alseg.training.evaluation import GRID
from alseg.training.fit import BEST, load_weights, member_name


@dataclass(frozen=True)
class TrainedRun:
    """An evaluated round of a run, with its best network.

    Attributes:
        folder: the run folder.
        config: the run's settings.
        task: channels and classes of the run's data set; it holds no cases.
        round_number: the round, from 1.
        metrics: its row of metrics.csv, of which a round that is not finished has ``round``,
            ``labelled`` and the columns of Dice only.
        source: the run's source of uncertainty.
        network: in eval mode, with the weights that the round has kept.
    """

    folder: Path
    config: DictConfig
    task: Task
    round_number: int
    metrics: Mapping[str, Any]
    source: UncertaintySource
    network: torch.nn.Module

    @property
    def checkpoint(self) -> Path:
        """The file of the network's weights."""
        return round_folder(self.folder, self.round_number) / f"{BEST}.ckpt"

    def member_checkpoints(self) -> tuple[Path, ...]:
        """The weights of an ensemble's further members; none for other sources.

        Raises:
            ConfigError: if the round has trained none.
        """
        paths = self._further_checkpoints(self.source.n_members)
        if missing := [path for path in paths if not path.is_file()]:
            raise ConfigError(
                f"there is no {missing[0]}: the members of an ensemble are trained in rounds that "
                "score the pool with them; choose such a round with round=N (alseg.predict needs "
                "them only for uncertainty_map=true)"
            )
        return paths

    def members(self) -> tuple[torch.nn.Module, ...]:
        """The further members of an ensemble, in eval mode."""
        return self._networks(self.member_checkpoints())

    @property
    def space(self) -> str:
        """Where its Dice was taken; runs of earlier versions know the preprocessed grid only."""
        space: str = OmegaConf.select(self.config, "evaluation.space", default=GRID)
        return space

    @property
    def n_evaluated(self) -> int:
        """How many networks the Dice of a round is of; runs of earlier versions have one."""
        name = "evaluation.networks"
        n_networks: int = OmegaConf.select(self.config, name, default=AS_BEFORE[name])
        return n_networks

    def evaluated_checkpoints(self) -> tuple[Path, ...]:
        """The weights of all networks that the Dice of the round is of."""
        return (self.checkpoint, *self._further_checkpoints(self.n_evaluated))

    @cached_property
    def evaluated(self) -> torch.nn.Module:
        """What the Dice of the round is of, in eval mode: its network, or the mean of several.

        Raises:
            DataError: if weights are missing, damaged or were changed.
        """
        further = self._networks(self._further_checkpoints(self.n_evaluated))
        return MeanPrediction((self.network, *further)).eval() if further else self.network

    def _further_checkpoints(self, n_networks: int) -> tuple[Path, ...]:
        folder = round_folder(self.folder, self.round_number)
        numbers = range(2, n_networks + 1)
        return tuple(folder / f"{member_name(number)}.ckpt" for number in numbers)

    def _networks(self, checkpoints: Collection[Path]) -> tuple[torch.nn.Module, ...]:
        make_network = build_network(self.config, self.task)
        return tuple(_with_weights(make_network(), path) for path in checkpoints)

    def own_strategy(self, trusted_packages: Collection[str] = ()) -> Strategy:
        """The strategy of the run.

        Raises:
            ConfigError: if its settings name a function or class that is not trusted.
        """
        parts = OmegaConf.to_container(self.config.strategy, resolve=True)
        check_targets({"strategy": parts}, self.folder / CONFIG_FILE, trusted_packages)
        return build_strategy(self.config)

    def scoring(self, strategy: Strategy) -> Scoring:
        """How a strategy scores a volume: by all passes over all windows.

        Raises:
            ConfigError: if the network makes no passes that it needs.
        """
        passes = strategy.needs_passes
        if passes:
            self.source.check(self.network)
        return Scoring(
            strategy,
            self.source.exact,
            build_inferers(self.config)[1],
            self.config.seed,
            self.round_number,
            self.members() if passes else (),
        )


def load_trained(
    folder: object, round_number: object = None, trusted_packages: Any = ()
) -> TrainedRun:
    """Load the best network of a run.

    Args:
        folder: the run folder.
        round_number: an evaluated round; None for the one with the best validation Dice.
        trusted_packages: of the user's own, which the run's settings may name.

    Raises:
        ConfigError: if there is no such round, or the settings name what is not to be trusted.
        DataError: if the folder is not a run folder, no round is evaluated, or a file is damaged or
            was changed.
    """
    check_text("run", folder)
    check_names("trusted_packages", trusted_packages)
    path = Path(str(folder)).expanduser()
    if not RunState.is_in(path):
        raise DataError(f"{path} is not a run folder, or its run has finished no round yet")
    state = RunState.load(path)
    rounds = evaluated_rounds(path, state)
    number = chosen_round(path, rounds, round_number)
    config = trusted_config(path, trusted_packages)
    if state.config_hash != config_hash(config):
        raise DataError(
            f"{path / CONFIG_FILE} was changed after the run had started, so it does not say what "
            "the network was trained with; put it back as it was"
        )
    task = read_task(path)
    source: UncertaintySource = instantiate(config.uncertainty)
    check_part("uncertainty", source, UncertaintySource)
    make_network = build_network(config, task)
    network = source.untrained(lambda member: make_network())
    checkpoint = round_folder(path, number) / f"{BEST}.ckpt"
    return TrainedRun(
        path, config, task, number, rounds[number], source, _with_weights(network, checkpoint)
    )


def evaluated_rounds(folder: Path, state: RunState) -> dict[int, Mapping[str, Any]]:
    """The rounds whose network is trained and evaluated, with their rows of metrics.csv.

    The last one may not be finished: it waits for the annotations that it has asked for.

    Args:
        folder: the run folder.
        state: of the run.
    """
    rounds: dict[int, Mapping[str, Any]] = {row["round"]: row for row in state.history}
    number = state.finished_rounds + 1
    if columns := evaluated_columns(round_folder(folder, number)):
        rounds[number] = {"round": number, "labelled": len(state.pool.units), **columns}
    return rounds


def chosen_round(folder: Path, rounds: Mapping[int, Mapping[str, Any]], wanted: object) -> int:
    """The round that is asked for, or the one with the best validation Dice; the later of equals.

    Raises:
        ConfigError: if the run has not evaluated the round that is asked for.
        DataError: if it has evaluated none.
    """
    if not rounds:
        raise DataError(
            f"the run in {folder} has finished no round yet, so that there is no network to use; "
            "continue it with python -m alseg.train resume=..."
        )
    dice = {number: row["val_dice"] for number, row in rounds.items()}
    if wanted is None:
        return max(dice, key=lambda n: (-math.inf if math.isnan(dice[n]) else dice[n], n))
    check_whole_number("round", wanted, at_least=1)
    assert isinstance(wanted, int)
    if wanted not in dice:
        raise ConfigError(
            f"round is {wanted}, and the run in {folder} has evaluated the rounds "
            f"{min(dice)} to {max(dice)}"
        )
    return wanted


def trusted_config(folder: Path, trusted_packages: Collection[str]) -> DictConfig:
    """The settings of a run, whose network, preprocessing and windows may be built.

    Raises:
        ConfigError: if they name a function or class that is not trusted.
    """
    config = load_config(folder)
    source = folder / CONFIG_FILE
    check_moved(flat(OmegaConf.to_container(config)), source)
    data = {name: config.data[name] for name in ("preprocess", "inferer", "scoring_inferer")}
    built = OmegaConf.create(
        {"model": config.model, "uncertainty": config.uncertainty, "data": data}
    )
    check_targets(OmegaConf.to_container(built), source, trusted_packages)
    return config


def note_task(folder: Path, task: Task) -> None:
    """Write the channels and classes of a run's data set into the run folder."""
    names = {"channels": list(task.channels), "classes": list(task.classes)}
    write_json(folder / TASK_FILE, {"name": task.name, **names})


def read_task(folder: Path) -> Task:
    """The channels and classes that ``note_task`` has written; the task holds no cases.

    Raises:
        DataError: if they are missing or damaged.
    """
    path = folder / TASK_FILE
    content = read_json(path)
    name, lists = content.get("name"), [content.get(key) for key in ("channels", "classes")]
    if not isinstance(name, str) or not all(
        isinstance(names, list) and names and all(isinstance(each, str) for each in names)
        for names in lists
    ):
        raise DataError(f"{path} does not say which channels and classes the run has")
    if len(set(content["classes"])) < len(content["classes"]):
        raise DataError(f"{path} is damaged: it names a class twice")
    channels, classes = (tuple(names) for names in lists if names is not None)
    return Task(name, folder, channels, classes, {})


def _with_weights(network: torch.nn.Module, checkpoint: Path) -> torch.nn.Module:
    if not checkpoint.is_file():
        raise DataError(f"there is no {checkpoint}: the round's weights have been removed")
    check_unchanged(checkpoint)
    load_weights(network, checkpoint)
    return network.eval()
