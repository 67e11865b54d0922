"""A round's query: its network looks at the candidates, and some of them are acquired."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from alseg.active.acquisition import Acquired, Acquisition
from alseg.active.query_pictures import QueryPictures
from alseg.active.round import Round
from alseg.active.round_training import Trained
from alseg.run.score_journal import ScoreFile
from alseg.scoring.racing import Heats
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import race_for
from alseg.strategies.strategy import CaseScore
from alseg.system.files import write_atomically
from alseg.training.callbacks.progress import progress_callbacks

log = logging.getLogger(__name__)


def query(this_round: Round, trained: Trained) -> Acquired:
    """Choose the round's query and have it annotated."""
    experiment = this_round.experiment
    acquisition = Acquisition(
        experiment.strategy,
        experiment.oracle,
        experiment.plan.query_size,
        experiment.plan.seed,
        experiment.plan.rounds,
        experiment.cost,
        experiment.similarity,
    )
    acquisition.start_round(this_round.pool, this_round.number, this_round.candidates)
    if experiment.strategy.needs_prediction:
        score(this_round, trained, acquisition)
    else:
        acquisition.acquire()
    acquired = acquisition.result()
    experiment.data.reveal(acquired.labels)
    write_scores(this_round.folder, acquired)
    return acquired


def score(this_round: Round, trained: Trained, acquisition: Acquisition) -> None:
    """Let the round's network look at the candidates; the acquisition follows at the end.

    What an earlier process has scored is not looked at again.
    """
    experiment, module = this_round.experiment, trained.module
    strategy, data, scores = experiment.strategy, experiment.data, this_round.score_file
    again = set(this_round.candidates)  # labelled volumes that may be repeated
    reference = [i for i in this_round.pool.labelled if strategy.features and i not in again]
    earlier = to_go_on_from(scores, (*this_round.candidates, *reference))
    acquisition.go_on_from(earlier, scores)
    done = {score.case_id for score in earlier}
    data.start_scoring(
        candidates=[i for i in this_round.candidates if i not in done],
        reference=[i for i in reference if i not in done],
        hidden_labels=hidden_labels(this_round),
    )
    module.scoring = Scoring(
        strategy,
        experiment.source,
        experiment.scoring_inferer,
        experiment.plan.seed,
        this_round.number,
        trained.members,
        heats_of(this_round, earlier),
    )
    pictures = QueryPictures(
        acquisition,
        data.cache,
        module.dice.classes,
        experiment.n_pictures,
        experiment.save_maps,
        this_round.folder,
    )
    title = f"{this_round.title} · {len(this_round.pool.labelled)} labelled"
    trainer = experiment.make_trainer(
        logger=False,
        enable_checkpointing=False,
        callbacks=[acquisition, pictures, *progress_callbacks(title)],
    )
    trainer.predict(module, datamodule=data, return_predictions=False)


def heats_of(this_round: Round, earlier: Collection[CaseScore]) -> Heats | None:
    """The race of the candidates, with what has been seen of it; None for fixed passes."""
    experiment = this_round.experiment
    race = race_for(
        experiment.source,
        experiment.strategy,
        experiment.plan.query_size,
        n_volumes=len(this_round.candidates),
    )
    if race is None:
        return None
    for score in earlier:
        race.know(score)
    return Heats(race)


def to_go_on_from(file: ScoreFile, case_ids: Collection[str]) -> list[CaseScore]:
    """The scores that an interrupted pass over these cases has left, at least one case short.

    The prediction loop then has a volume to look at, and what follows it runs as always. A heat's
    volumes are there together or not at all: in one process they race as they would have without
    the interruption.
    """
    wanted = set(case_ids)
    groups = [group for group in file.read() if wanted.issuperset(s.case_id for s in group)]
    # several processes may have scored one case
    while len({s.case_id for group in groups for s in group}) == len(wanted):
        groups.pop()
    scores = list({s.case_id: s for group in groups for s in group}.values())
    if scores:
        log.info(f"{len(scores)} of {len(case_ids)} volumes were scored before the interruption")
    file.start(groups)
    return scores


def hidden_labels(this_round: Round) -> Mapping[str, Path]:
    """Labels that nobody has annotated yet, for a strategy flagged with ``reads_labels`` alone."""
    experiment = this_round.experiment
    if not experiment.strategy.reads_labels:
        return {}
    return experiment.oracle.peek(this_round.candidates)


def write_scores(folder: Path, acquired: Acquired) -> None:
    """Write ``scores.csv`` and ``features.csv`` of a round, where its strategy has them."""
    ordered = sorted(acquired.scores, key=lambda s: s.case_id)
    rows = [(s.case_id, s.score, s.n_passes) for s in ordered if s.score is not None]
    if rows:
        scores = pd.DataFrame(rows, columns=["case_id", "score", "n_passes"])
        if acquired.similarities:
            scores["similarity"] = scores["case_id"].map(acquired.similarities)
        write_atomically(folder / "scores.csv", scores.to_csv(index=False))
    vectors = {s.case_id: s.features for s in ordered if s.features is not None}
    if vectors:
        features = pd.DataFrame.from_dict(vectors, orient="index").rename_axis("case_id")
        write_atomically(folder / "features.csv", features.to_csv(float_format="%.6g"))
