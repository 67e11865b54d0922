"""When to stop annotating: one paragraph after each round."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from alseg.active.round import Round
from alseg.curves.forecast import expected_gain, forecast
from alseg.curves.models import MIN_ROUNDS
from alseg.oracles.annotations import Annotation, Annotations, minutes_by_case
from alseg.run.folder import CASES_FILE, STOPPING_FILE
from alseg.run.measure import CROSS, VALIDATION, measure_of
from alseg.system.distributed import rank
from alseg.system.files import write_atomically

log = logging.getLogger(__name__)

Row = Mapping[str, Any]  # of metrics.csv
N_RESAMPLES = 2000
FEWEST_CASES = 5  # for an interval over cases: a bootstrap of fewer is far too narrow
BIASES = {
    VALIDATION: "; these cases also choose the weights, so it is somewhat too high",
    CROSS: "; the network that judged a case was trained on the other folds only, so it tends to "
    "be too low for the round's own network",
}
HARDLY_CORRECTED = 0.95  # Dice of a proposal with what a person has made of it, from there on


def advise(this_round: Round, rows: Sequence[Row]) -> None:
    """Say, and write to ``when_to_stop.txt``, what the rounds so far say about continuing.

    Before the query, which a person may take days to answer. A run that is resumed meanwhile has
    said it already: it names the file, which is brought up to date.

    Args:
        this_round: the round; it has been evaluated.
        rows: of metrics.csv, of the finished rounds and of this one.
    """
    if rank() == 0:
        text, path = advice(this_round, rows), this_round.experiment.folder / STOPPING_FILE
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_atomically(path, text + "\n")
        is_said = before.startswith(dice_so_far(this_round, rows[-1]))
        log.info(f"When to stop: {path} says it" if is_said else text)


def advice(this_round: Round, rows: Sequence[Row]) -> str:
    """One paragraph: how good the network is, and what the next query would bring.

    A sentence that has nothing to say, such as on the minutes of a simulation, is left out.
    """
    curve = known_curve(rows)
    history = Annotations(this_round.experiment.folder).history
    return " ".join(
        [
            dice_so_far(this_round, rows[-1]),
            *next_query(this_round, curve),
            *target(this_round, curve, minutes_per_volume(history)),
            *time_so_far(history),
            *corrections(history),
        ]
    )


def known_curve(rows: Sequence[Row]) -> pd.DataFrame:
    """The rounds that have a Dice: columns ``labelled`` and ``dice``."""
    column = measure_of(rows[0]).column
    curve = {"labelled": [r["labelled"] for r in rows], "dice": [r[column] for r in rows]}
    return pd.DataFrame(curve, dtype=np.float64).dropna()


def dice_so_far(this_round: Round, row: Row) -> str:
    """The Dice of the round with its uncertainty over the cases."""
    measure, units = measure_of(row), this_round.experiment.plan.units
    start, dice = f"When to stop: with {row['labelled']} labelled {units}", row[measure.column]
    if math.isnan(dice):
        return (
            f"{start} the {measure.title} is not defined, as no label of that part holds "
            "foreground."
        )
    table = pd.read_csv(this_round.folder / CASES_FILE, dtype={"case_id": str})
    classes = [f"dice_{name}" for name in this_round.experiment.data.cache.task.foreground]
    of_part = table.loc[table["part"] == measure.part, classes].dropna(how="all")
    values = of_part.to_numpy(dtype=np.float64)  # [cases with a Dice, classes]
    span = interval_over_cases(values, this_round.seed("when_to_stop"))
    sure = (
        f"of {len(values)} {'case' if len(values) == 1 else 'cases'}, too few for an interval"
        if span is None
        else f"95% interval {span[0]:.3f} to {span[1]:.3f} over {len(values)} cases"
    )
    return f"{start} the {measure.title} is {dice:.3f} ({sure}){BIASES.get(measure, '')}."


def interval_over_cases(dice: np.ndarray, seed: int) -> tuple[float, float] | None:
    """95% interval of the mean Dice by a bootstrap over cases (Efron, Ann. Statist. 7, 1979).

    A resample draws cases with replacement; its Dice is the mean over classes of the means over
    cases, as a round's. 2.5 and 97.5 percentiles. Of few cases it is too narrow, and of fewer than
    ``FEWEST_CASES`` there is none. It holds for further cases of the same kind and this network.

    Args:
        dice: of each case and class, NaN where a case does not have the class, shape [n, classes].
        seed: of the draws.
    """
    if len(dice) < FEWEST_CASES:
        return None
    drawn = np.random.default_rng(seed).integers(len(dice), size=(N_RESAMPLES, len(dice)))
    resamples = dice[drawn]  # [resamples, n, classes]
    has = ~np.isnan(resamples)
    totals, counts = np.where(has, resamples, 0.0).sum(axis=1), has.sum(axis=1)
    by_class = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    present = ~np.isnan(by_class)  # [resamples, classes]
    some = present.any(axis=1)
    means = np.where(present, by_class, 0.0).sum(axis=1)[some] / present.sum(axis=1)[some]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def next_query(this_round: Round, curve: pd.DataFrame) -> Sequence[str]:
    """What the next query is expected to bring; nothing where nothing is left to ask for."""
    plan, n_left = this_round.experiment.plan, len(this_round.pool.unlabelled)
    if this_round.experiment.regions is not None:  # a case may have room for several
        n_left = plan.query_size if this_round.candidates else 0
    n_more = min(plan.query_size, n_left)
    if n_more == 0:
        return ()
    volumes = f"{n_more} more labelled {plan.unit_shape.unit if n_more == 1 else plan.units}"
    if curve["labelled"].nunique() < MIN_ROUNDS:
        return (f"What {volumes} would bring cannot be said before {MIN_ROUNDS} rounds.",)
    gain = expected_gain(curve["labelled"].to_numpy(), curve["dice"].to_numpy(), n_more)
    if gain is None:
        return (
            f"What {volumes} would bring cannot be said: the Dice of the rounds so far scatters "
            "around the curve that fits it best.",
        )
    return (
        f"By the curve fitted to {len(curve)} rounds, {volumes} are expected to change it by "
        f"{gain.dice:+.3f} (95% interval {gain.low:+.3f} to {gain.high:+.3f}).",
    )


def target(this_round: Round, curve: pd.DataFrame, minutes: float | None) -> Sequence[str]:
    """How many labelled volumes, and hours, the target takes, if there is one.

    Args:
        this_round: the round.
        curve: see ``known_curve``.
        minutes: that a volume takes; None where nobody has said it.
    """
    wanted = this_round.experiment.target_dice
    if wanted is None or curve.empty:
        return ()
    label = f"labelled {this_round.experiment.plan.units}"
    found = forecast(curve.assign(strategy="Target", seed=0), wanted, label=label)
    if found.fit is None and curve["labelled"].nunique() < MIN_ROUNDS and found.volumes is None:
        return ()  # that has been said
    statement = found.statement
    now = len(this_round.pool.units)
    if minutes is not None and found.volumes is not None and found.volumes > now:
        hours, low, high = (
            max(v - now, 0) * minutes / 60 for v in (found.volumes, found.low, found.high)
        )
        upper = "no upper limit" if math.isinf(high) else f"{high:.1f}"
        statement += f" That is {hours:.1f} hours of annotation from here ({low:.1f} to {upper})."
    return (statement,)


def minutes_per_volume(history: Sequence[Annotation]) -> float | None:
    """The mean over the cases of which somebody has said it; None where nobody has."""
    minutes = minutes_by_case(history)
    return math.fsum(minutes.values()) / len(minutes) if minutes else None


def time_so_far(history: Sequence[Annotation]) -> Sequence[str]:
    """How long annotation has taken; nothing where nobody has said it."""
    minutes, n_cases = minutes_by_case(history), len({each.case for each in history})
    mean = minutes_per_volume(history)
    if mean is None:
        return ()
    of = (
        ""
        if len(minutes) == n_cases
        else (
            f" (the mean of {len(minutes)} of {n_cases} volumes; of the others nobody has said it)"
        )
    )
    return (f"Annotation has taken {mean:.1f} minutes a volume so far{of}.",)


def corrections(history: Sequence[Annotation]) -> Sequence[str]:
    """How many proposals needed hardly any correction; nothing where there were none."""
    newest = {each.case: each for each in history}.values()
    proposed = [each for each in newest if each.proposal_dice is not None]
    if not proposed:
        return ()
    last = [each for each in proposed if each.request == proposed[-1].request]
    shares = f"{share_hardly_corrected(last)} proposals of the last query"
    if len(last) < len(proposed):
        shares += f", and {share_hardly_corrected(proposed)} of all"
    return (
        f"Hardly any correction (Dice with the label of at least {HARDLY_CORRECTED}) was needed by "
        f"{shares}.",
    )


def share_hardly_corrected(proposed: Sequence[Annotation]) -> str:
    """How many proposals needed hardly any correction, as text."""
    dice = [each.proposal_dice for each in proposed if each.proposal_dice is not None]
    n_good = sum(value >= HARDLY_CORRECTED for value in dice)
    return f"{n_good} of {len(dice)}"
