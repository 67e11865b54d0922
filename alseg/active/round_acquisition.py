"""A round's query: its network looks at the candidates, and some of them are acquired."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import DataLoader

from alseg.active.acquisition_callback import Acquired, AcquisitionCallback, query_rows
from alseg.active.query_maps import QueryMaps
from alseg.active.query_selection import Chooser, Chosen
from alseg.active.region_units import RegionUnits
from alseg.active.round import Round
from alseg.active.round_training import Trained
from alseg.core.seeding import seed_for
from alseg.core.units import Query, as_unit
from alseg.data.annotation import Annotation
from alseg.run.folder import FEATURES_FILE, SCORES_FILE, request_of_round
from alseg.run.stages import QUERY
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import StoppingRule
from alseg.strategies.places import Places
from alseg.strategies.regions import foreground_share
from alseg.strategies.strategy import CaseScore, feature_matrix
from alseg.system.files import write_atomically
from alseg.training.callbacks.predictions import predict
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.scoring_module import ScoringModule

log = logging.getLogger(__name__)


def acquire(this_round: Round, trained: Trained) -> Acquired:
    """Choose the round's query and have it annotated.

    A query that an earlier process has chosen is not chosen again: it is asked again.
    """
    experiment, network = this_round.experiment, trained.module.network
    is_chosen = QUERY in this_round.stages
    predicts = this_round.needs_prediction and not is_chosen
    earlier = earlier_scores(this_round) if predicts else []
    members = trained.members[: experiment.source.n_members - 1]
    scoring = scoring_of(this_round, members, earlier)
    acquisition = acquisition_callback(this_round, earlier)
    if predicts:
        volumes = volumes_to_score(this_round, {score.case_id for score in earlier})
        title = f"{this_round.title} · {len(this_round.pool.units)} labelled"
        predict(
            experiment.make_trainer,
            ScoringModule(network, scoring),
            volumes,
            [acquisition, *progress_callbacks(title)],
        )
    elif not is_chosen:
        acquisition.choose()
    chosen = acquisition.chosen or saved_query(this_round)
    requested = experiment.oracle.request(
        request_of_round(this_round.number),
        chosen.query,
        chosen.scores,
        partial(propose, this_round, network, scoring, chosen),
    )
    acquired = acquisition.annotate(chosen)
    experiment.data.reveal(acquired.labels)
    if this_round.needs_prediction:
        drawn = {unit.case_id for unit in requested}
        rows = [row for row in acquired.queries if row["case_id"] not in drawn]
        draw(this_round, network, scoring, rows, acquired.labels)
    return acquired


def acquisition_callback(this_round: Round, earlier: Sequence[CaseScore]) -> AcquisitionCallback:
    """The callback that acquires at the end of a prediction run."""
    experiment = this_round.experiment
    chooser = Chooser(
        experiment.strategy,
        experiment.plan.query_size,
        experiment.plan.seed_of_labels,
        experiment.plan.rounds,
        this_round.number,
        this_round.pool,
        this_round.candidates,
        this_round.parts.training,
        experiment.similarity,
        is_for_regions=experiment.regions is not None,
        draw=None if experiment.regions is None else partial(random_query, this_round),
        classes_of=experiment.data.foreground_classes,
    )
    return AcquisitionCallback(
        chooser,
        experiment.oracle,
        experiment.answer_costs,
        partial(save_query, this_round),
        earlier,
        this_round.score_file,
    )


def random_query(this_round: Round) -> Query:
    """Regions for a strategy that looks at no prediction: random, or centred on foreground."""
    experiment, regions = this_round.experiment, this_round.experiment.regions
    assert regions is not None
    seed = seed_for(experiment.plan.seed_of_labels, this_round.number, "selection")
    return regions.draw(
        this_round.pool,
        this_round.candidates,
        experiment.plan.query_size,
        np.random.default_rng(seed),
        hidden_labels(this_round),
        foreground_share(experiment.strategy) or 0.0,
    )


def scoring_of(
    this_round: Round, members: tuple[nn.Module, ...], earlier: Collection[CaseScore]
) -> Scoring:
    """How the round's network scores a volume."""
    experiment = this_round.experiment
    return Scoring(
        experiment.strategy,
        experiment.source,
        experiment.scoring_inferer,
        experiment.plan.seed,
        this_round.number,
        members,
        stopping_rule_of(this_round, earlier),
        None if experiment.regions is None else partial(places_of, this_round, experiment.regions),
    )


def places_of(this_round: Round, regions: RegionUnits, case_id: str) -> Places:
    """Where the query's regions may lie in a case."""
    return regions.places(this_round.pool, case_id, this_round.experiment.plan.query_size)


def cases_to_score(this_round: Round) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The candidates, and the training cases that the strategy compares them with.

    Labelled cases that validate are no part of them: the network has learned nothing from them.
    """
    again = set(this_round.candidates)  # labelled volumes that may be repeated
    compares = this_round.experiment.strategy.features is not None
    reference = (i for i in this_round.parts.training if compares and i not in again)
    return this_round.candidates, tuple(reference)


def volumes_to_score(this_round: Round, done: Collection[str]) -> DataLoader:
    """What the network looks at; what an earlier process has scored is left out."""
    candidates, reference = cases_to_score(this_round)
    return this_round.experiment.data.volumes(
        [i for i in candidates if i not in done],
        [i for i in reference if i not in done],
        hidden_labels(this_round),
    )


def save_query(this_round: Round, chosen: Chosen) -> None:
    """Keep a query, with the scores that led to it, before anybody is asked for a label."""
    if cost := scoring_cost(chosen.case_scores):
        log.info(f"{this_round.title} · {cost}")
    files = write_scores(this_round.folder, chosen)
    units = [asdict(unit) | {"score": chosen.scores.get(unit.name)} for unit in chosen.query]
    this_round.stages.finish(QUERY, files, seconds=0.0, units=units)


def scoring_cost(scores: Sequence[CaseScore]) -> str:
    """What scoring the candidates took, in a line; nothing if they were not scored."""
    costs = {s.case_id: s.plain_passes for s in scores if not s.labelled}
    known = [cost for cost in costs.values() if cost is not None]
    if not known:
        return ""
    return f"scored {len(known)} volumes at {sum(known) / len(known):.1f} plain passes each"


def saved_query(this_round: Round) -> Chosen:
    """The query that ``save_query`` has kept."""
    noted = this_round.stages[QUERY]["units"]
    query = tuple(map(as_unit, noted))
    scores = {unit.name: u["score"] for unit, u in zip(query, noted, strict=True)}
    return Chosen(query, {name: score for name, score in scores.items() if score is not None})


def propose(
    this_round: Round,
    network: nn.Module,
    scoring: Scoring,
    chosen: Chosen,
    units: Query,
    folder: Path,
) -> None:
    """Propose segmentations for units of a query, with maps of their uncertainty; draw pictures.

    Args:
        this_round: the round.
        network: its network.
        scoring: what the query was chosen by; for a strategy that looks at no prediction, it is one
            pass of the plain network that proposes.
        chosen: the query.
        units: those to propose for; nobody knows their labels yet.
        folder: the request folder.
    """
    if not this_round.needs_prediction:
        plain = replace(scoring.strategy, deterministic=True)
        scoring = replace(scoring, strategy=plain)
    unknown = {unit: {"cost": 0.0} for unit in chosen.query}
    rows = query_rows(this_round.number, chosen.query, chosen.scores, unknown)
    wanted = {unit.case_id for unit in units}
    draw(
        this_round,
        network,
        scoring,
        [row for row in rows if row["case_id"] in wanted],
        {},
        folder,
    )


def draw(
    this_round: Round,
    network: nn.Module,
    scoring: Scoring,
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[str, Annotation],
    request: Path | None = None,
) -> None:
    """Draw the top queries, and write maps of all of them, as the experiment asks for.

    Args:
        this_round: the round.
        network: its network.
        scoring: what the query was chosen by.
        rows: of queries.csv.
        labels: what may be read of the labels of those that are annotated.
        request: the request folder that they are proposed in; None for none.
    """
    experiment = this_round.experiment
    if not experiment.save_maps and request is None:
        rows = [row for row in rows if row["rank"] <= experiment.n_pictures]
    if rows:
        pictures = QueryMaps(
            network,
            scoring,
            experiment.data.cache,
            rows,
            labels,
            experiment.n_pictures,
            experiment.save_maps,
            this_round.folder,
            request,
        )
        volumes = experiment.data.volumes(list(dict.fromkeys(row["case_id"] for row in rows)))
        predict(experiment.make_trainer, pictures, volumes, [])


def stopping_rule_of(this_round: Round, earlier: Collection[CaseScore]) -> StoppingRule | None:
    """What ends the passes of a candidate, with what has been seen so far; None for all passes."""
    experiment = this_round.experiment
    rule = experiment.source.stopping_rule(
        experiment.strategy, experiment.plan.query_size, len(this_round.candidates)
    )
    if rule is not None:
        for score in earlier:
            rule.observe(score)
    return rule


def earlier_scores(this_round: Round) -> list[CaseScore]:
    """The scores that an interrupted pass over the round's cases has left, at least one case short.

    The prediction loop then has a volume to look at, and what follows it runs as always.
    """
    file, cases = this_round.score_file, cases_to_score(this_round)
    wanted = set().union(*cases)
    groups = [group for group in file.read() if wanted.issuperset(s.case_id for s in group)]
    # several processes may have scored one case
    while len({s.case_id for group in groups for s in group}) == len(wanted):
        groups.pop()
    scores = list({s.unit: s for group in groups for s in group}.values())
    if scores:
        n_scored = len({s.case_id for s in scores})
        log.info(f"{n_scored} of {len(wanted)} volumes were scored before the interruption")
    file.start(groups)
    return scores


def hidden_labels(this_round: Round) -> Mapping[str, Path]:
    """Labels that nobody has annotated yet, for a strategy with ``reads_labels`` only."""
    experiment = this_round.experiment
    if not experiment.strategy.reads_labels:
        return {}
    return experiment.oracle.peek(this_round.candidates)


def write_scores(folder: Path, chosen: Chosen) -> tuple[str, ...]:
    """Write ``scores.csv`` and ``features.csv`` of a round, where its strategy has them.

    Returns:
        The names of the files.
    """
    tables: dict[str, str] = {}
    ordered = sorted(chosen.case_scores, key=lambda s: s.name)
    scored = [s for s in ordered if s.score is not None]
    if scored:
        scores = pd.DataFrame([(s.case_id, s.score, s.n_passes) for s in scored])
        scores.columns = pd.Index(["case_id", "score", "n_passes"])
        if any(s.region is not None for s in scored):
            scores.insert(1, "region", [s.unit.where for s in scored])
        if chosen.similarities:
            scores["similarity"] = scores["case_id"].map(chosen.similarities)
        tables[SCORES_FILE] = scores.to_csv(index=False)
    matrix = feature_matrix(ordered)
    if matrix is not None:
        names = pd.Index([s.name for s in ordered if s.features is not None], name="case_id")
        tables[FEATURES_FILE] = pd.DataFrame(matrix, names).to_csv(float_format="%.6g")
    for name, text in tables.items():
        write_atomically(folder / name, text)
    return tuple(tables)
