"""Several data sets: what their comparisons say together. No curve mixes two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from alseg.comparison.analysis import Comparison
from alseg.comparison.runs import check_same_strategy
from alseg.comparison.statistics import Ranking, pair_by_seed, rank_strategies
from alseg.core.errors import ConfigError


@dataclass(frozen=True)
class Benchmark:
    """Comparisons on several data sets, and what they say together.

    A setting is a seed of a data set: within it all strategies begin with the same labels.

    Attributes:
        comparisons: one for each data set, by its name.
        strategies: those that all data sets have, except full data.
        missing: the other strategies, and the data sets that have them.
        areas: columns ``data``, ``seed``, ``strategy``, ``area``: of ``strategies``.
        ranks: mean rank of each strategy (rows) in each data set and, as ``all``, over all
            settings, the best first; over the settings that have all strategies.
        overview: one row a strategy; columns ``strategy``, ``mean_rank``, ``n_settings`` shared
            with the reference, ``n_above`` (settings in which its area is above the reference's),
            ``share_above``, ``difference`` (mean over data sets of the mean difference), and
            ``surely_above`` and ``surely_below``, the numbers of data sets whose 95% interval of
            the difference lies above and below 0.
        matrix: pairwise penalty matrix, the mean of those of the data sets; None if one has too few
            seeds.
        ranking: the ranks with their tests, the settings as blocks; None with too few of them.
    """

    comparisons: Mapping[str, Comparison]
    strategies: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]
    areas: pd.DataFrame
    ranks: pd.DataFrame
    overview: pd.DataFrame
    matrix: pd.DataFrame | None
    ranking: Ranking | None

    @property
    def reference(self) -> str:
        """The strategy that the others are compared with."""
        return next(iter(self.comparisons.values())).reference

    @property
    def reads_labels(self) -> frozenset[str]:
        """The strategies that see hidden labels."""
        return frozenset().union(*(c.run_set.reads_labels for c in self.comparisons.values()))

    @property
    def labels(self) -> Mapping[str, str]:
        """How each strategy is called in tables and figures; says which ones read labels."""
        found: dict[str, str] = {}
        for comparison in self.comparisons.values():
            found |= comparison.labels
        return found

    @property
    def n_settings(self) -> int:
        """Seeds of data sets that have all strategies."""
        return len(_complete(self.areas))


def analyse_together(comparisons: Mapping[str, Comparison]) -> Benchmark:
    """What comparisons on several data sets say together.

    The penalty matrix is that of BADGE (Ash et al., ICLR 2020) over data sets and budgets, each
    data set with the same weight; ranks are Demšar's (JMLR 7, 2006), over settings.

    Args:
        comparisons: by the name of the data set, all with the same reference.

    Raises:
        ConfigError: if a strategy is not the same in all data sets, or there is no setting that has
            all strategies.
    """
    runs = [run for comparison in comparisons.values() for run in comparison.run_set.runs]
    check_same_strategy(sorted(runs, key=lambda run: run.strategy))
    having: dict[str, list[str]] = {}
    for data, comparison in comparisons.items():
        for strategy in comparison.run_set.strategies:
            having.setdefault(strategy, []).append(data)
    strategies = tuple(sorted(s for s, sets in having.items() if len(sets) == len(comparisons)))
    tables = [c.summaries.assign(data=data) for data, c in comparisons.items()]
    areas = pd.concat(tables, ignore_index=True)[["data", "seed", "strategy", "area"]]
    areas = areas[areas["strategy"].isin(strategies)].reset_index(drop=True)
    ranks = mean_ranks(areas)
    return Benchmark(
        comparisons=comparisons,
        strategies=strategies,
        missing={s: tuple(sets) for s, sets in having.items() if s not in strategies},
        areas=areas,
        ranks=ranks,
        overview=overview(comparisons, areas, ranks),
        matrix=mean_matrix([c.matrix for c in comparisons.values()], strategies),
        ranking=rank_strategies(areas.assign(seed=_setting(areas))),
    )


def _setting(areas: pd.DataFrame) -> pd.Series:
    return areas["data"] + " " + areas["seed"].astype(str)


def _complete(areas: pd.DataFrame) -> pd.DataFrame:
    """One row a setting that has all strategies, one column a strategy."""
    return areas.pivot(index=["data", "seed"], columns="strategy", values="area").dropna()


def mean_ranks(areas: pd.DataFrame) -> pd.DataFrame:
    """Mean rank by area of each strategy (rows) in each data set and in ``all`` settings.

    1 is best, ties share their mean rank; only settings that have all strategies count. A data set
    without such a setting has NaN.

    Args:
        areas: columns data, seed, strategy, area.

    Raises:
        ConfigError: if no setting has all strategies.
    """
    wide = _complete(areas)
    if wide.empty:
        raise ConfigError(
            "no seed of any data set has runs of all strategies, so they cannot be ranked; let the "
            "sweep finish at least one seed of each data set"
        )
    ranks = wide.rank(axis=1, ascending=False)
    by_data = ranks.groupby("data").mean().reindex(areas["data"].unique()).T
    return by_data.assign(all=ranks.mean()).sort_values("all", kind="stable")


def overview(
    comparisons: Mapping[str, Comparison], areas: pd.DataFrame, ranks: pd.DataFrame
) -> pd.DataFrame:
    """One row a strategy, as ``Benchmark.overview`` says, by mean rank."""
    reference = next(iter(comparisons.values())).reference
    rows = []
    for strategy in ranks.index:
        pairs = pair_by_seed(areas, strategy, reference, "area", on=("data", "seed"))
        rows.append(
            {
                "strategy": strategy,
                "mean_rank": ranks.loc[strategy, "all"],
                "n_settings": len(pairs),
                "n_above": int((pairs["difference"] > 0).sum()),
                "share_above": (pairs["difference"] > 0).mean(),
                "difference": pairs.groupby("data")["difference"].mean().mean(),
            }
        )
    table = pd.DataFrame(rows)
    differences = pd.concat([c.differences for c in comparisons.values()])
    by_strategy = differences.set_index("strategy")
    surely_above = (by_strategy["low"] > 0).groupby("strategy").sum()
    surely_below = (by_strategy["high"] < 0).groupby("strategy").sum()
    return table.assign(
        surely_above=table["strategy"].map(surely_above).fillna(0).astype(int),
        surely_below=table["strategy"].map(surely_below).fillna(0).astype(int),
    )


def mean_matrix(
    matrices: Sequence[pd.DataFrame | None], strategies: Sequence[str]
) -> pd.DataFrame | None:
    """The mean of penalty matrices over data sets, of some strategies; None if one is missing."""
    found = [m.loc[list(strategies), list(strategies)] for m in matrices if m is not None]
    if not found or len(found) < len(matrices):
        return None
    return pd.DataFrame(
        sum(m.to_numpy() for m in found) / len(found), index=strategies, columns=strategies
    )


def sentences_together(benchmark: Benchmark) -> list[str]:
    """The answer over all data sets, the most important sentence first."""
    names = ", ".join(benchmark.comparisons)
    table = benchmark.overview.set_index("strategy")
    honest = [s for s in table.index if s not in benchmark.reads_labels] or list(table.index)
    best, reference = str(honest[0]), benchmark.reference
    n_sets, n_settings = len(benchmark.comparisons), benchmark.n_settings
    found = [
        f"Over {n_sets} data sets ({names}), {best} has the best mean rank: "
        f"{table.loc[best, 'mean_rank']:.2f} of {len(table)} strategies in {n_settings} settings, "
        f"each a seed of a data set."
    ]
    if best == reference:
        beaten = [
            f"{name} in {row['n_above']:.0f} of {row['n_settings']:.0f}"
            for name, row in table.loc[[s for s in honest if s != reference]].iterrows()
        ]
        above = f" Settings in which they are above it: {', '.join(beaten)}." if beaten else ""
        found.append(
            f"No strategy that may compete has a better mean rank than {reference}.{above}"
        )
    else:
        row = table.loc[best]
        found.append(
            f"{best} is above {reference} in {row['n_above']:.0f} of {row['n_settings']:.0f} "
            f"settings ({row['share_above']:.0%}), by {row['difference']:+.3f} of the area on "
            f"average over data sets; surely above it on {row['surely_above']:.0f} and surely "
            f"below it on {row['surely_below']:.0f} of {n_sets} (95% interval of the mean over "
            "seeds)."
        )
    for strategy, sets in benchmark.missing.items():
        found.append(f"{strategy} has runs only on {', '.join(sets)}, and is not ranked.")
    return found
