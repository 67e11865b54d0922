"""Scores the scans of an archive, in shards, with the network and the strategy of a run.

One scan after another: of a scan nothing is kept in memory except its id and path. A shard is the
scans whose ids fall into it by a checksum, so it stays the same when others come or go. Each shard
has a table and a lock of its own, so processes on any machines that see the folder share the work.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import Timeout
from omegaconf import DictConfig, OmegaConf

from alseg.config.build import build_strategy
from alseg.core.counts import counted
from alseg.core.errors import ConfigError, DataError, check_whole_number
from alseg.data.archive import Archive, archive_of
from alseg.data.findings import listed
from alseg.engine.scans import ScanJob, ScanModule, folders_of, run_trainer, trainer_of
from alseg.engine.score_tables import (
    DONE,
    REFUSED,
    TABLES,
    TOP_FILE,
    Row,
    ScoreTable,
    top_of,
    write_top,
)
from alseg.engine.trained_run import TrainedRun, load_trained
from alseg.run.links import check_links
from alseg.strategies.strategy import Strategy
from alseg.system.console import Meter, say
from alseg.system.files import checksum_of, locked, read_json, write_json
from alseg.training.trainers import workers_for

RECORD_FILE = "scoring.json"  # what all shards have in common
NAMED = 5  # scans of the highest scores, in what is printed


def score(config: DictConfig) -> None:
    """Score the scans of a folder; print what was done.

    Args:
        config: of conf/score.yaml.

    Raises:
        AlsegError: with one clear sentence, if nothing can be done; or at the end, if scans could
            not be scored.
    """
    numbers = shards_of(config)
    check_whole_number("top", config.top, at_least=1)
    trainer, num_workers = trainer_of(config), workers_for(config.data.num_workers)
    images, output = folders_of(config)
    run = load_trained(config.run, config.round, config.trusted_packages)
    strategy, parts = strategy_of(config, run)
    archive = archive_of(images, len(run.task.channels))
    output.mkdir(parents=True, exist_ok=True)
    check_links(output)
    job = Job(run, archive, output, strategy, parts)
    check_record(output, job, config.shards)
    refused: list[str] = []
    n_new = 0
    for number in numbers:
        table = ScoreTable(output, number, config.shards)
        part = replace(job, archive=shard_of(archive, number, config.shards))
        with locked_shard(output, number):
            found = score_shard(trainer, part, table, num_workers)
        refused += found.refused
        n_new += found.n_scored
    report(job, n_new, config.top, refused)


def shards_of(config: DictConfig) -> list[int]:
    """The shards that are scored here, one after another."""
    check_whole_number("shards", config.shards, at_least=1)
    if config.shard is None:
        return list(range(config.shards))
    check_whole_number("shard", config.shard, at_least=0)
    if config.shard >= config.shards:
        raise ConfigError(
            f"shard is {config.shard} of shards={config.shards}; they are numbered from 0"
        )
    return [config.shard]


def shard_of(archive: Archive, number: int, shards: int) -> Archive:
    """The scans of a shard."""
    return archive.only(lambda case_id: zlib.crc32(case_id.encode()) % shards == number)


def strategy_of(config: DictConfig, run: TrainedRun) -> tuple[Strategy, Mapping[str, Any]]:
    """The strategy that scores, with its settings: that of the command line, or the run's own.

    Raises:
        ConfigError: if it gives a volume no score, or reads its label.
    """
    is_given = config.get("strategy") is not None
    strategy = build_strategy(config) if is_given else run.own_strategy(config.trusted_packages)
    if strategy.measure is None:
        raise ConfigError(
            f"the strategy {strategy.name} gives a volume no score; name one that does, such as "
            "strategy=entropy"
        )
    if strategy.reads_labels:
        raise ConfigError(
            f"the strategy {strategy.name} reads labels, which new scans do not have; name "
            "another, such as strategy=entropy"
        )
    settings = config if is_given else run.config
    parts: Any = OmegaConf.to_container(settings.strategy, resolve=True)
    return strategy, parts


@dataclass(frozen=True)
class Job(ScanJob):
    """Which scans are scored, and by what.

    Attributes:
        strategy: gives the score.
        parts: the settings that it is built of.
    """

    strategy: Strategy
    parts: Mapping[str, Any]

    @cached_property
    def network_hash(self) -> str:
        """Changes whenever the network or what is asked of it does."""
        run, strategy = self.run, self.strategy
        checksums = [checksum_of(path) for path in (run.checkpoint, *self.member_checkpoints())]
        settings = [
            OmegaConf.to_container(run.config.data[name])
            for name in ("scoring_inferer", "preprocess")
        ]
        source = OmegaConf.to_container(run.config.uncertainty)
        parts = {name: self.parts.get(name) for name in ("measure", "aggregation")}
        content = [checksums, settings, source, parts, strategy.deterministic]
        content += [run.config.seed, run.round_number]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def member_checkpoints(self) -> tuple[Path, ...]:
        """The weights of an ensemble's further members, where they are asked."""
        return self.run.member_checkpoints() if self.strategy.needs_passes else ()

    def is_current(self, row: Row) -> bool:
        """Whether a row is the score that this process would give."""
        case = self.archive.get(row["case"])
        return (
            case is not None
            and row["status"] == DONE
            and all(image.is_file() for image in case.images)
            and row["made_of"] == self.made_of(row["case"])
        )


class Scorer(ScanModule):
    """Scores one scan after another, each of which is a row of a table.

    Args:
        job: which scans.
        table: of the shard.
        n_before: the scans that an earlier process has scored.
    """

    job: Job

    def __init__(self, job: Job, table: ScoreTable, n_before: int) -> None:
        super().__init__(job, Meter("scoring", "scan", len(job.archive), done=n_before))
        self.table = table
        self.scoring = job.run.scoring(job.strategy)
        self.refused: list[str] = []

    def look_at(self, case_id: str, batch: Mapping[str, Any]) -> None:
        """Score one scan."""
        started = time.monotonic() - batch["seconds"]
        image = batch["entry"]["image"].unsqueeze(0)  # [1, channels, D, H, W]
        found = self.scoring.score(self.network, image, case_id)
        self.table.append(
            case_id,
            DONE,
            score=found.score,
            n_passes=found.n_passes,
            seconds=round(time.monotonic() - started, 3),
            message=" ".join(batch["findings"].split()),
            made_of=self.job.made_of(case_id),
        )

    def note_refused(self, case_id: str, message: str) -> None:
        """Note why a scan could not be scored."""
        self.refused.append(case_id)
        self.table.append(case_id, REFUSED, message=message, made_of=REFUSED)


@dataclass(frozen=True)
class ShardReport:
    """What was done of a shard.

    Attributes:
        n_scored: scans that were scored now.
        refused: those that could not be.
    """

    n_scored: int
    refused: tuple[str, ...] = ()


def score_shard(trainer: pl.Trainer, job: Job, table: ScoreTable, num_workers: int) -> ShardReport:
    """Score the scans of a shard that its table does not have yet."""
    done = table.keep(job.is_current)
    waiting = [case_id for case_id in job.archive if case_id not in done]
    if not waiting:
        return ShardReport(0)
    scorer = Scorer(job, table, n_before=len(done))
    run_trainer(trainer, scorer, waiting, num_workers)
    return ShardReport(len(waiting) - len(scorer.refused), tuple(scorer.refused))


@contextmanager
def locked_shard(output: Path, number: int) -> Iterator[None]:
    """Hold a shard; the lock goes with the process, however it ends.

    Raises:
        ConfigError: if another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output / f".shard_{number:04d}.lock", blocking=False))
        except Timeout:
            raise ConfigError(
                f"shard {number} in {output} is being scored by another process; wait for it, or "
                "give another shard"
            ) from None
        yield


def check_record(output: Path, job: Job, shards: int) -> None:
    """Note what all shards have in common, or check that it is what the first has noted.

    Raises:
        ConfigError: if the output was begun with another network, strategy or number of shards.
    """
    path = output / RECORD_FILE
    record = {
        "run": str(job.run.folder.resolve()),
        "round": job.run.round_number,
        "strategy": job.strategy.name,
        "shards": shards,
        "network": job.network_hash,
    }
    with locked(output / ".scoring.lock"):
        if not path.is_file():
            write_json(path, record)
            return
        noted = read_json(path)
    for name in ("shards", "round", "strategy", "network"):
        if noted.get(name) != record[name]:
            raise ConfigError(
                f"{output} was begun with {name} {noted.get(name)}, and this is {name} "
                f"{record[name]}; give the same settings, or another output"
            )


def report(job: Job, n_new: int, n_top: int, refused: Sequence[str]) -> None:
    """Write the list of the highest scores so far, and say what was done.

    Raises:
        DataError: naming the scans that could not be scored.
    """
    run, output = job.run, job.output
    with locked(output / ".scoring.lock"):  # whoever ends last has all rows
        top, n_scored = top_of(sorted(output.glob(TABLES)), n_top)
        write_top(output / TOP_FILE, top)
    say(
        f"scored {counted(n_new, 'scan')} by {job.strategy.name} with the network of round "
        f"{run.round_number} of {run.folder}; {n_scored} of {len(job.archive)} are scored: "
        f"{output}"
    )
    if top:
        named = [f"{case_id} ({score:.4g})" for _, case_id, score in top[:NAMED]]
        say(f"the highest scores: {', '.join(named)}; {output / TOP_FILE} has {len(top)}")
    if refused:
        raise DataError(
            f"{counted(len(refused), 'scan')} could not be scored: {listed(refused)}; the "
            f"tables in {output} say why"
        )
