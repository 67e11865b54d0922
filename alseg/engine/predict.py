"""Segments new scans with the best network of a run.

One case after another: of a case, nothing is kept except its row of the table. Memory, with C
classes, V voxels of the preprocessed grid and S of the source: the image and the probabilities,
about (4 channels + 20 C) V bytes, then S bytes of classes and a slab (``alseg.data.source_grid``).
With ``uncertainty_map=true``, passes keep about 18 C V bytes more, and the map takes 4 S bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from alseg.config.build import build_inferers
from alseg.core.counts import counted
from alseg.core.errors import ConfigError, DataError, check_choice, check_flag
from alseg.data.archive import archive_of
from alseg.data.findings import listed
from alseg.data.formats.folder import LONGEST_ID
from alseg.data.source_grid import classes_on_source_grid, values_on_source_grid
from alseg.data.volumes import write_nifti
from alseg.engine.prediction_table import DONE, REFUSED, WRITING, PredictionTable
from alseg.engine.scans import ScanJob, ScanModule, folders_of, run_trainer, trainer_of
from alseg.engine.trained_run import TrainedRun, load_trained
from alseg.run.folder import CASES_FILE
from alseg.run.lock import locked_run
from alseg.scoring.scorer import mask_seed_of
from alseg.scoring.sources import plain_pass
from alseg.strategies import measures
from alseg.strategies.aggregations import foreground_mean
from alseg.strategies.statistics import VoxelStatistics, single_pass
from alseg.system.console import Meter, say
from alseg.system.files import checksum_of
from alseg.training.trainers import workers_for

# of several passes; the others are those of a single pass as well
DISAGREEMENTS = ("variance", "mutual_information", "variation_ratio")
MEASURES = ("entropy", "expected_entropy", "margin", "least_confidence", *DISAGREEMENTS)
UNCERTAINTY_FOLDER = "uncertainty"


def predict(config: DictConfig) -> PredictionTable:
    """Segment the scans of a folder; print what was done.

    Args:
        config: of conf/predict.yaml.

    Returns:
        The table of the cases.

    Raises:
        AlsegError: with one clear sentence, if nothing can be done; or at the end, if scans could
            not be segmented.
    """
    check_flag("uncertainty_map", config.uncertainty_map)
    check_choice("measure", config.measure, MEASURES)
    if config.measure in DISAGREEMENTS and not config.uncertainty_map:
        raise ConfigError(
            f"measure is {config.measure}, which compares several passes; add uncertainty_map=true"
        )
    trainer, num_workers = trainer_of(config), workers_for(config.data.num_workers)
    images, output = folders_of(config)
    run = load_trained(config.run, config.round, config.trusted_packages)
    archive = archive_of(images, len(run.task.channels))
    output.mkdir(parents=True, exist_ok=True)
    with locked_run(output):
        table = PredictionTable(output / CASES_FILE, run.task.foreground)
        job = Job(run, archive, output, config.measure, config.uncertainty_map)
        waiting = [case_id for case_id in archive if not job.is_done(case_id, table)]
        try:
            if waiting:
                predictor = Predictor(job, table, n_before=len(archive) - len(waiting))
                run_trainer(trainer, predictor, waiting, num_workers)
        finally:
            table.save()
    report(table, list(archive), run, n_before=len(archive) - len(waiting))
    return table


@dataclass(frozen=True)
class Job(ScanJob):
    """What is to be made of which scans.

    Attributes:
        measure: the name of the measure of uncertainty.
        passes: whether the run's source of uncertainty makes its passes, for a map; else the
            measure is taken of the one plain pass that segments, for the table only.
    """

    measure: str
    passes: bool

    @cached_property
    def network_hash(self) -> str:
        """Changes whenever the network or what is asked of it does."""
        members = self.run.member_checkpoints() if self.passes else ()
        checksums = [checksum_of(path) for path in (*self.run.evaluated_checkpoints(), *members)]
        names = ("inferer", "scoring_inferer", "preprocess")
        settings = [OmegaConf.to_container(self.run.config.data[name]) for name in names]
        source = OmegaConf.to_container(self.run.config.uncertainty)
        content = [checksums, settings, source, self.measure, self.passes, self.task.classes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def file(self, case_id: str) -> Path:
        """Where the segmentation of a case goes."""
        return self.output / f"{file_name(case_id)}.nii.gz"

    def map_file(self, case_id: str) -> Path:
        """Where the map of its uncertainty goes."""
        return self.output / UNCERTAINTY_FOLDER / f"{file_name(case_id)}.nii.gz"

    def is_done(self, case_id: str, table: PredictionTable) -> bool:
        """Whether an earlier process has left there what this one would."""
        row = table.rows.get(case_id, {})
        return (
            row.get("status") == DONE
            and all(image.is_file() for image in self.task.cases[case_id].images)
            and row["made_of"] == self.made_of(case_id)
            and checksum_of(self.file(case_id)) == row["checksum"]
            and (not self.passes or self.map_file(case_id).is_file())
        )

    def check_place(self, case_id: str, table: PredictionTable) -> None:
        """Check that a file that is overwritten is an unchanged one of ours.

        Raises:
            DataError: if it is not: somebody may have corrected it.
        """
        row, file = table.rows.get(case_id, {}), self.file(case_id)
        ours = row.get("status") == WRITING or row.get("checksum") == checksum_of(file)
        if file.exists() and not ours:
            raise DataError(
                f"{file} is not what alseg.predict has left there, and is not overwritten; move it "
                "away, or give another output"
            )


def file_name(case_id: str) -> str:
    """What the files of a scan are called: its id, shortened where file systems take no such name.

    Ids are paths in an archive, whose folders may be named by long UIDs.
    """
    if len(os.fsencode(case_id)) <= LONGEST_ID:
        return case_id
    return f"{case_id[:40]}-{hashlib.sha256(case_id.encode()).hexdigest()[:16]}"


class Predictor(ScanModule):
    """Segments one scan after another, and notes each in the table.

    Args:
        job: what is to be made.
        table: of the cases.
        n_before: the cases that an earlier process has done.
    """

    job: Job

    def __init__(self, job: Job, table: PredictionTable, n_before: int) -> None:
        super().__init__(job, Meter("segmenting", "scan", len(job.task.cases), done=n_before))
        self.table = table
        self.evaluated = job.run.evaluated
        self.members = job.run.members() if job.passes else ()
        if job.passes:
            job.run.source.check(self.network)
        self.inferer, self.scoring_inferer = build_inferers(job.run.config)

    def look_at(self, case_id: str, batch: Mapping[str, Any]) -> None:
        """Segment one scan, write the files, and note the case."""
        job, started = self.job, time.monotonic() - batch["seconds"]
        job.check_place(case_id, self.table)
        entry, source = batch["entry"], job.task.cases[case_id].images[0]
        image = entry["image"].unsqueeze(0)  # [1, channels, D, H, W]
        probabilities = plain_pass(self.evaluated, image, self.inferer)
        classes = classes_on_source_grid(probabilities, entry)
        statistics = single_pass(probabilities)
        if job.passes:
            statistics = self.statistics(image, case_id)
        measure: Callable[[VoxelStatistics], Tensor] = getattr(measures, job.measure)
        uncertainty = measure(statistics)
        self.table.note(case_id, status=WRITING)
        write_nifti(job.file(case_id), classes, source)
        if job.passes:
            write_nifti(job.map_file(case_id), values_on_source_grid(uncertainty, entry), source)
        voxel_ml = float(entry["source_affine"][:3, :3].det().abs()) / 1000
        self.table.note(
            case_id,
            status=DONE,
            uncertainty=foreground_mean(uncertainty, statistics),
            file=str(job.file(case_id).name),
            message=" ".join(batch["findings"].split()),
            checksum=checksum_of(job.file(case_id)),
            made_of=job.made_of(case_id),
            seconds=round(time.monotonic() - started, 3),
            **sizes(classes, job.task.foreground, voxel_ml),
        )

    def statistics(self, image: Tensor, case_id: str) -> VoxelStatistics:
        """Statistics of the passes of the run's source of uncertainty."""
        run = self.job.run
        mask_seed = mask_seed_of(run.config.seed, run.round_number, case_id)
        networks = (self.network, *self.members)
        return run.source.statistics(networks, image, self.scoring_inferer, mask_seed)

    def note_refused(self, case_id: str, message: str) -> None:
        """Note why a scan could not be segmented."""
        checksum = self.table.rows.get(case_id, {}).get("checksum", "")  # of what is left there
        self.table.note(case_id, status=REFUSED, message=message, checksum=checksum)


def sizes(classes: Tensor, names: tuple[str, ...], voxel_ml: float) -> dict[str, float]:
    """Voxels and millilitres of each foreground class, as columns of the table."""
    counts = classes.flatten().bincount(minlength=len(names) + 1)[1:].tolist()
    columns: dict[str, float] = {}
    for name, count in zip(names, counts, strict=True):
        columns |= {f"voxels_{name}": count, f"ml_{name}": round(count * voxel_ml, 4)}
    return columns


def report(table: PredictionTable, case_ids: list[str], run: TrainedRun, n_before: int) -> None:
    """Say what was done.

    Raises:
        DataError: naming the scans that could not be segmented.
    """
    rows = table.table().set_index("case").loc[case_ids]
    refused = list(rows.index[rows["status"] != DONE])
    n_new = len(rows) - len(refused) - n_before
    networks = "the network"
    if run.n_evaluated > 1:
        networks = f"the mean prediction of the {run.n_evaluated} networks"
    before = f"; {n_before} were there before" if n_before else ""
    say(
        f"segmented {counted(n_new, 'scan')} with {networks} of round {run.round_number} of "
        f"{run.folder}{before}: {table.path.parent}"
    )
    noticeable = rows[(rows["look"] != "") & (rows["status"] == DONE)].sort_values("rank")
    if len(noticeable):
        named = [f"{case_id} ({why})" for case_id, why in noticeable["look"].items()]
        say(f"{len(noticeable)} worth a look: {listed(named)}; all are in {table.path}")
    if refused:
        raise DataError(
            f"{len(refused)} of {counted(len(rows), 'scan')} could not be segmented: "
            f"{listed(refused)}; {table.path} says why"
        )
