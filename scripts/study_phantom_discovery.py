"""Which share of the phantoms' rare hard cases does each strategy find by each budget?

A direct test of acquisition, without training noise: whether a case is hard is known from the
generator, so no Dice comes in, and all strategies look at the pool through the same network. For
each seed one network is trained, on the initial random volumes; then each strategy asks for 5, 10,
... more at once. Random finds hard cases in proportion to the budget.

    python scripts/study_phantom_discovery.py runs/discovery
    python scripts/study_phantom_discovery.py runs/discovery --seeds 1 2 -- steps_per_round=200

What stands behind ``--`` goes to ``python -m alseg.train``. Networks and the results of each seed
are kept in the folder: the script can be stopped and started again, then with the same settings. It
prints a Markdown table, writes discovery.csv and draws discovery.png.

A strategy whose selector changes over the rounds (clasp_pe) is asked as in the first of two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torch import Tensor

from alseg.active.experiment import Experiment
from alseg.active.query_selection import Chooser
from alseg.config.build import build
from alseg.config.composition import conf_folder, instantiate
from alseg.config.settings import load_config, load_start
from alseg.core.pool import Pool
from alseg.data.similarity import LabelledSimilarity
from alseg.run.state import RunState
from alseg.scoring.scorer import Scoring
from alseg.strategies.strategy import CaseScore, Strategy
from alseg.system.files import write_atomically
from alseg.training.fit import load_weights

SETTINGS = (
    "data=phantom", "data.phantom.n_volumes=100", "data.splits.validation=0.06",
    "data.phantom.size=64", "data.phantom.hard_fraction=0.25", "data.phantom.tumour_rate=0.7",
    "data.phantom.tumour_scale=1", "data.spacing_mm=[5.0,5.0,5.0]", "data.patch_size=[32,32,32]",
    "data.crop_ratios=[1,1,2]", "data.inferer.roi_size=[64,64,56]",
    "data.splits.test=0.06", "pool.initial=5", "steps_per_round=400", "val_interval=200",
    "strategy=random", "pool.rounds=1", "pictures=0", "tracking=none",
)  # fmt: skip
BUDGETS = (5, 10, 15, 20, 25, 30)


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case, by the names of the strategies, and the plain passes they took."""

    by_strategy: dict[str, CaseScore]
    plain_passes: float | None = None


@dataclass(frozen=True)
class AsOne:
    """Strategies that look at a volume in the same way, so that they can share the passes.

    It stands in for a strategy in ``Scoring``; its score of a case has one entry a strategy.
    """

    strategies: tuple[Strategy, ...]

    def __getattr__(self, name: str) -> Any:
        """What is the same for all of them: features, deterministic, reads_labels."""
        return getattr(self.strategies[0], name)

    @property
    def statistics_read(self) -> frozenset[str]:
        """The statistics of the passes that any of them reads."""
        return frozenset().union(*(s.statistics_read for s in self.strategies))

    def score(self, *case: Any) -> CaseScores:
        """The score of one case by each strategy."""
        return CaseScores({s.name: s.score(*case) for s in self.strategies})


def main() -> None:
    """Run what is left of the study, and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    own, overrides = sys.argv[1:], []
    if "--" in own:
        own, overrides = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    tables = []
    for seed in arguments.seeds:
        folder = arguments.folder / f"seed_{seed}"
        file = folder / "discovery.csv"
        if not file.exists():
            train(folder, seed, overrides)
            write_atomically(file, study(folder, seed).to_csv(index=False))
        tables.append(pd.read_csv(file))
    everything = pd.concat(tables)
    everything.to_csv(arguments.folder / "discovery.csv", index=False)
    draw(everything, arguments.folder / "discovery.png")
    print(report(everything))


def train(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """Train the seed's network, or what is left of it."""
    settings = [f"hydra.run.dir={folder}", f"seed={seed}", *SETTINGS, *overrides]
    if RunState.is_in(folder):
        if not set(overrides) <= set(load_start(folder).overrides or ()):
            sys.exit(f"{folder} was trained with other settings; give another folder")
        settings = [f"resume={folder}"]
    subprocess.run([sys.executable, "-m", "alseg.train", *settings], check=True)


def study(folder: Path, seed: int) -> pd.DataFrame:
    """Let all strategies look at the pool through a trained network, and query.

    Returns:
        Columns ``strategy``, ``seed``, ``queried`` (volumes), ``found`` (the share of the pool's
        hard cases among them), ``by_chance`` (what a random query finds on average) and ``auroc``
        (of the score, hard against plain cases; NaN for strategies without a score).
    """
    experiment = build(load_config(folder), folder)
    pool = RunState.load(folder).pool
    experiment.data.reveal(experiment.oracle.labels_for_round(1, pool.labelled))
    network = experiment.make_network()
    load_weights(network, folder / "rounds" / "round_01" / "best.ckpt")
    strategies = all_strategies()
    scores = scores_of(experiment, network.eval(), pool, strategies)
    description = Path(experiment.data.cache.task.root) / "dataset.json"
    hard = {*pool.unlabelled} & {*json.loads(description.read_text(encoding="utf-8"))["hard_cases"]}
    rows = [
        {
            "strategy": strategy.title,
            "seed": seed,
            "queried": budget,
            "found": len(hard & {*query(experiment, strategy, pool, scores, budget)}) / len(hard),
            "by_chance": min(1.0, budget / len(pool.unlabelled)),
            "auroc": auroc(scores.get(strategy.name), hard),
        }
        for strategy in strategies
        for budget in BUDGETS
    ]
    return pd.DataFrame(rows)


def all_strategies() -> list[Strategy]:
    """Those in conf/strategy that choose."""
    names = sorted(path.stem for path in (Path(conf_folder()) / "strategy").glob("*.yaml"))
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        made = [instantiate(compose("config", [f"strategy={name}"]).strategy) for name in names]
    return [strategy for strategy in made if not strategy.full_data]


def scores_of(
    experiment: Experiment, network: torch.nn.Module, pool: Pool, strategies: Sequence[Strategy]
) -> dict[str, list[CaseScore]]:
    """The scores of all volumes by each strategy that needs any."""
    groups: dict[Any, list[Strategy]] = {}
    for s in strategies:
        if s.needs_prediction:
            groups.setdefault((s.features, s.deterministic, s.reads_labels), []).append(s)
    data = experiment.data
    hidden = experiment.oracle.peek(pool.unlabelled)
    scores: dict[str, list[CaseScore]] = {s.name: [] for g in groups.values() for s in g}
    for case_id in track((*pool.unlabelled, *pool.labelled), "scoring"):
        image = data.cache.image(case_id)["image"].unsqueeze(0)
        for (features, _, reads_labels), group in groups.items():
            labelled = case_id in pool.labelled
            if labelled and features is None:
                continue
            label: Tensor | None = None
            if reads_labels:
                label = data.cache.label(case_id, hidden[case_id])[0]  # [D, H, W]
            scoring = Scoring(
                AsOne(tuple(group)),  # type: ignore[arg-type]
                experiment.source,
                experiment.scoring_inferer,
                experiment.plan.seed,
                round_number=1,
            )
            with torch.no_grad():
                case = scoring.score(network, image, case_id, label, labelled)
            for name, score in case.by_strategy.items():  # type: ignore[attr-defined]
                scores[name].append(score)
    return scores


def query(
    experiment: Experiment,
    strategy: Strategy,
    pool: Pool,
    scores: dict[str, list[CaseScore]],
    query_size: int,
) -> list[str]:
    """The cases that a strategy asks for."""
    similarity = None
    if strategy.similarity is not None:
        similarity = LabelledSimilarity(experiment.data.cache, strategy.similarity)
    chooser = Chooser(
        strategy,
        query_size,
        experiment.plan.seed,
        n_rounds=2,
        round_number=1,
        pool=pool,
        candidates=pool.unlabelled,
        reference=pool.labelled,
        similarity=similarity,
        classes_of=experiment.data.foreground_classes,
    )
    return [unit.case_id for unit in chooser.choose(scores.get(strategy.name)).query]


def auroc(scores: list[CaseScore] | None, hard: set[str]) -> float:
    """The probability that a hard case has a higher score than a plain one."""
    rated = {s.case_id: s.score for s in scores or () if s.score is not None}
    if not rated:
        return float("nan")
    return float(roc_auc_score([case_id in hard for case_id in rated], list(rated.values())))


def report(everything: pd.DataFrame) -> str:
    """A Markdown table: the mean share of the hard cases found by each budget, best first."""
    n_seeds = everything["seed"].nunique()
    found = everything.pivot_table(index="strategy", columns="queried", values="found")
    spread = everything.groupby(["strategy", "seed"])["found"].mean().groupby("strategy")
    order = spread.mean().sort_values(ascending=False).index
    ranked = everything.groupby("strategy")["auroc"].mean()
    chance = everything.groupby("queried")["by_chance"].mean()
    lines = [
        f"| strategy ({n_seeds} seeds) | " + " | ".join(map(str, found)) + " | mean ± sd | AUROC |",
        "|" + " --- |" * (len(found.columns) + 3),
        "| *by chance* | " + " | ".join(f"{v:.0%}" for v in chance) + f" | {chance.mean():.0%} | |",
    ]
    for name in order:
        cells = " | ".join(f"{value:.0%}" for value in found.loc[name])
        area = f"{spread.mean()[name]:.0%} ± {spread.std()[name]:.0%}"
        rated = "" if np.isnan(ranked[name]) else f"{ranked[name]:.2f}"
        lines.append(f"| {name} | {cells} | {area} | {rated} |")
    return "\n".join(lines)


def draw(everything: pd.DataFrame, path: Path) -> None:
    """The share found against the budget, mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = everything.pivot_table(index="queried", columns="strategy", values="found")
    order = found.mean().sort_values(ascending=False).index
    figure, axes = plt.subplots(figsize=(8, 5))
    for index, name in enumerate(order):
        axes.plot(
            found.index,
            found[name],
            color=plt.get_cmap("tab20")(index % 20),
            linestyle="-" if index < 20 else "--",
            marker="o",
            markersize=3,
            label=name,
        )
    chance = everything.groupby("queried")["by_chance"].mean()
    axes.plot(chance.index, chance, color="black", linestyle=":", linewidth=2, label="by chance")
    axes.set_xlabel("queried volumes")
    axes.set_ylabel("share of the hard cases found")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
