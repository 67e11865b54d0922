"""Synthetic run folders with believable curves, written through RunState as real runs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from alseg.comparison.analysis import Comparison
from alseg.comparison.page import Origin, write_comparison
from alseg.core.pool import Pool, random_start
from alseg.core.seeding import seed_for
from alseg.run.state import RunState

CASES = tuple(f"case_{i:03d}" for i in range(60))
BUDGETS = (5, 10, 15, 20, 25, 30)
CLASSES = ("anterior", "posterior")
# a, b, c of Dice = a - b n^-c
SHAPES = {
    "random": (0.90, 0.45, 0.60),
    "variance": (0.90, 0.47, 0.68),
    "entropy": (0.90, 0.46, 0.64),
    "power": (0.90, 0.47, 0.70),
    "oracle_foreground": (0.91, 0.47, 0.74),
}


def write_page(comparison: Comparison, folder: Path) -> Path:
    """The page of a comparison, as made by a command."""
    runs = [str(run.folder) for run in comparison.run_set.runs]
    return write_comparison(comparison, folder, Origin.now("python -m alseg.compare runs", runs))


def config_of(strategy: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The part of a resolved configuration that comparisons read."""
    config = {
        "seed": seed,
        "steps_per_round": 600,
        "data": {"name": "hippocampus", "splits": {"seed": 0}},
        "strategy": {
            "name": strategy,
            "full_data": strategy == "full",
            "reads_labels": strategy.startswith("oracle"),
        },
        "pool": {"initial": 5, "query_size": 5, "rounds": len(BUDGETS)},
    }
    return config | changes


def dice_rows(
    strategy: str, seed: int, budgets: tuple[int, ...], noise: float
) -> list[dict[str, Any]]:
    """The history: a power law, with noise that a seed shares in its first round."""
    a, b, c = SHAPES.get(strategy, SHAPES["variance"])
    rng = np.random.default_rng(seed_for(seed, 0, strategy))
    shared = np.random.default_rng(seed).normal(0, noise)
    rows = []
    for number, n in enumerate(budgets, 1):
        same_start = number == 1 and len(budgets) > 1
        a_, b_, c_ = SHAPES["random"] if same_start else (a, b, c)
        dice = a_ - b_ * n**-c_ + shared + (0 if same_start else rng.normal(0, noise))
        row: dict[str, Any] = {"round": number, "labelled": n}
        for part in ("val", "test"):
            row |= {f"{part}_dice": dice}
            row |= {
                f"{part}_dice_{k}": dice + s for k, s in zip(CLASSES, (0.01, -0.01), strict=True)
            }
        rows.append(row)
    return rows


def timing(number: int, needs_scores: bool) -> dict[str, Any]:
    return {
        "round": number,
        "training_seconds": 110.0 + number,
        "evaluation_seconds": 4.0,
        "scoring_seconds": 21.5 if needs_scores else 0.1,
        "preprocessed_volumes": 5,
        "preprocessing_seconds": 0.7,
    }


def write_run(
    folder: Path,
    strategy: str,
    seed: int,
    *,
    rounds: int | None = None,
    noise: float = 0.004,
    cases: tuple[str, ...] = CASES,
    history: list[dict[str, Any]] | None = None,
    pictures: bool = False,
    **config: Any,
) -> Path:
    """Write one run folder.

    Args:
        folder: is made.
        strategy: decides the curve; ``full`` has one round with all cases.
        seed: the run's seed.
        rounds: finished rounds; None for all.
        noise: standard deviation of the Dice.
        cases: the training cases.
        history: rows in place of the synthetic ones.
        pictures: whether to draw overlays of the queries.
        config: changes of the configuration.
    """
    full = strategy == "full"
    budgets = (len(cases),) if full else BUDGETS[:rounds]
    if history is None:
        history = dice_rows(strategy, seed, budgets, noise)
    order = random_start(cases, len(cases), seed_for(seed, 1, strategy))
    initial = cases if full else random_start(cases, 5, seed_for(seed, 0, "initial_pool"))
    pool = Pool.start(cases, initial)
    state = RunState(pool, "hash", queries=query_rows(0, initial))
    for row in history:
        last = full or row["round"] == len(BUDGETS)
        query = () if last else [c for c in order if c in pool.unlabelled][:5]
        pool = pool.acquire(query)
        queries = query_rows(row["round"], query)
        state = state.after_round(pool, row, queries, timing(row["round"], strategy != "random"))
        round_folder = folder / "rounds" / f"round_{row['round']:02d}"
        round_folder.mkdir(parents=True)
        write_cases(round_folder / "cases.csv", row)
        if pictures and query:
            draw(round_folder / "pictures" / f"01_{query[0]}.png")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(strategy, seed, **config)))
    state.save(folder)
    return folder


def query_rows(round_number: int, case_ids: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"round": round_number, "case_id": c, "score": None, "rank": rank}
        for rank, c in enumerate(case_ids, 1)
    )


def write_cases(path: Path, row: dict[str, Any]) -> None:
    rows = [
        {"case_id": f"{part}_{i}", "part": part}
        | {f"dice_{k}": row.get(f"{part}_dice_{k}", 0.5) for k in CLASSES}
        for part in ("val", "test")
        for i in range(3)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True)
    figure = Figure(figsize=(11, 4.2))
    x = np.linspace(-2, 2, 60)
    for index, axes in enumerate(figure.subplots(1, 3)):
        axes.imshow(np.exp(-((x[:, None] - index / 3) ** 2) - x**2), cmap="inferno")
        axes.set(title=("image", "prediction", "uncertainty")[index], xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def write_sweep(
    root: Path,
    strategies: tuple[str, ...] = (*SHAPES, "full"),
    seeds: tuple[int, ...] = (1, 2, 3, 4),
    **settings: Any,
) -> Path:
    """Write a run folder for each strategy and seed."""
    for strategy in strategies:
        for seed in seeds:
            write_run(root / f"{strategy}_seed{seed}", strategy, seed, **settings)
    return root


def write_calibration(run_folder: Path) -> None:
    """Write calibration.csv, five bins of 100 voxels, into each round of a run folder."""
    for folder in sorted((run_folder / "rounds").iterdir()):
        low = np.arange(0, 1, 0.2)
        table = pd.DataFrame({"bin_low": low, "bin_high": low + 0.2, "n_voxels": 100})
        table = table.assign(confidence=low + 0.1, accuracy=np.clip(low + 0.05, 0, 1))
        table.to_csv(folder / "calibration.csv", index=False)
