"""Which share of the phantoms' rare hard cases has each strategy found by each budget?

A direct test of acquisition: whether a case is hard is known from the generator, so no Dice and
none of its noise comes in. Random finds hard cases in proportion to the budget; a strategy that
sees difficulty finds them earlier.

    python scripts/study_phantom_discovery.py runs/discovery --strategies random entropy hybrid \
        --seeds 1 2 3 -- steps_per_round=150

What stands behind ``--`` goes to ``python -m alseg.train``. Runs lie in folders of their own under
the given one: finished ones are read, interrupted ones continued, so the script can be stopped and
started again at any time. It prints a Markdown table and writes discovery.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from alseg.data.phantom import write_phantom_dataset

DEFAULT_STRATEGIES = (
    "random", "variance", "entropy", "bald", "foreground_entropy", "clasp_pe", "core_set",
    "typiclust", "hybrid", "oracle_dice",
)  # fmt: skip


def discovery(state: dict[str, Any], hard_cases: list[str]) -> pd.DataFrame:
    """The share of the pool's hard cases that are labelled, after each finished round.

    Args:
        state: the content of a run's state.json.
        hard_cases: the hard cases of the whole data set.

    Returns:
        Columns ``labelled``, ``found`` (share of the hard cases) and ``by_chance`` (share of the
        pool, what a random query finds on average).
    """
    pool = {*state["pool"]["labelled"], *state["pool"]["unlabelled"]}
    hard = pool & set(hard_cases)
    rows = []
    for row in state["history"]:
        labelled = {q["case_id"] for q in state["queries"] if q["round"] < row["round"]}
        rows.append(
            {
                "labelled": len(labelled),
                "found": len(labelled & hard) / len(hard),
                "by_chance": len(labelled) / len(pool),
            }
        )
    return pd.DataFrame(rows)


def run_once(folder: Path, strategy: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run, continue or read one run; returns its state."""
    state_file = folder / "state.json"
    if not (folder / "done").exists():
        settings = (
            [f"resume={folder}"]
            if state_file.exists()
            else [f"hydra.run.dir={folder}", f"strategy={strategy}", f"seed={seed}", *overrides]
        )
        command = [sys.executable, "-m", "alseg.train", "data=phantom", "tracking=none", *settings]
        subprocess.run(command, check=True)
        (folder / "done").touch()
    state: dict[str, Any] = json.loads(state_file.read_text())
    return state


def hard_cases_of(folder: Path) -> list[str]:
    """The hard cases of the phantom data set that a run was made with."""
    parameters = yaml.safe_load((folder / "config.yaml").read_text())["data"]["phantom"]
    parameters.pop("_target_")
    dataset = write_phantom_dataset(**parameters)  # finds what is there already
    return list(json.loads((dataset / "dataset.json").read_text())["hard_cases"])


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strategies", nargs="+", default=DEFAULT_STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    own, overrides = sys.argv[1:], []
    if "--" in own:
        own, overrides = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    tables = []
    for seed in arguments.seeds:  # all strategies of a seed first: pairs are complete early
        for strategy in arguments.strategies:
            folder = arguments.folder / f"{strategy}_seed{seed}"
            state = run_once(folder, strategy, seed, overrides)
            table = discovery(state, hard_cases_of(folder))
            tables.append(table.assign(strategy=strategy, seed=seed))
    everything = pd.concat(tables)
    everything.to_csv(arguments.folder / "discovery.csv", index=False)
    chance = everything.groupby("labelled")["by_chance"].mean().rename("by chance")
    found = everything.pivot_table(index="strategy", columns="labelled", values="found")
    rows = pd.concat([chance.to_frame().T, found.loc[list(arguments.strategies)]])
    print(f"| strategy ({len(arguments.seeds)} seeds) | " + " | ".join(map(str, rows.columns)), "|")
    print("|" + "---|" * (len(rows.columns) + 1))
    for name, row in rows.iterrows():
        print(f"| {name} | " + " | ".join(f"{value:.0%}" for value in row), "|")


if __name__ == "__main__":
    main()
