"""How alseg grows: seconds, memory and bytes of what pools, runs and archives multiply.

    python scripts/benchmark_growth.py                        all parts, some minutes on one core
    python scripts/benchmark_growth.py --json                 the same table as JSON
    python scripts/benchmark_growth.py --only selectors --candidates 1000000
    python scripts/benchmark_growth.py --only comparison --strategies 20 --seeds 10 --rounds 10

Each row is measured in a process of its own: seconds of its processor time, whatever else the
machine is doing, and its peak memory less what it has before. Selectors choose 100 of the
candidates, with 1,000 labelled and 128 features in 300 groups of unequal sizes. Goals: a selector
60 s and 1 GiB for 100,000 candidates, the comparison of 200 runs of 10 rounds 30 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from omegaconf import OmegaConf

from alseg.active.query_selection import Chosen
from alseg.active.round_acquisition import write_scores
from alseg.config.composition import composed
from alseg.core.pool import Pool
from alseg.data.archive import archive_of
from alseg.engine.score_tables import ScoreTable, top_of
from alseg.run.folder import CONFIG_FILE, STATE_FILE, round_folder
from alseg.run.state import RunState
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import MCDropout
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import entropy
from alseg.strategies.selectors import balanced, diverse, noisy, ranked
from alseg.strategies.selectors.candidates import Candidates, Selector
from alseg.strategies.selectors.ranked import top_k
from alseg.strategies.strategy import CaseScore, Strategy, feature_vector

SELECTORS: dict[str, Selector] = {
    "top_k": ranked.top_k,
    "random": noisy.random,
    "power": noisy.power,
    "softrank": noisy.softrank,
    "gibbs": partial(noisy.gibbs, temperature=0.1),
    "stochastic_batch": noisy.stochastic_batch,
    "class_stratified": partial(balanced.class_stratified, rank=noisy.power),
    "class_balanced_random": balanced.class_balanced_random,
    "mi_diversity": diverse.mi_diversity,
    "density_weighted": diverse.density_weighted,
    "prefilter": partial(ranked.prefilter, multiple=10, then=diverse.k_center),
    "kmeans_plus_plus": diverse.kmeans_plus_plus,
    "k_center": diverse.k_center,
    "kmeans": diverse.kmeans,
    "typiclust": diverse.typiclust,
}
N_FEATURES, N_GROUPS, N_LABELLED, QUERY_SIZE = 128, 300, 1_000, 100
PARTS = ("selectors", "comparison", "rounds", "archive", "volume")
Row = dict[str, Any]


def main() -> None:
    """Measure the parts, each row in a process of its own."""
    arguments = parsed()
    rows = []
    for name in rows_wanted(arguments):
        rows.append({"row": name} | in_a_process(partial(row_of, name, arguments)))
        if not arguments.json:
            numbers = [f"{key} {value:,}" for key, value in rows[-1].items() if key != "row"]
            print(f"{name:<32}", "  ".join(numbers), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--candidates", type=int, default=100_000, help="of the selectors")
    parser.add_argument("--selectors", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--strategies", type=int, default=20, help="of the comparison")
    parser.add_argument("--seeds", type=int, default=10, help="of the comparison")
    parser.add_argument("--rounds", type=int, default=10, help="of the comparison")
    parser.add_argument("--pool", type=int, default=100_000, help="of rounds and archive")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def rows_wanted(arguments: argparse.Namespace) -> list[str]:
    """The rows of the parts that are asked for."""
    parts = {name: [name] for name in PARTS}
    parts["selectors"] = [f"selector {name}" for name in arguments.selectors]
    return [row for name in arguments.only for row in parts[name]]


def in_a_process(work: Callable[[], Row]) -> Row:
    """What a process of its own finds, forked from this one, which has imported all and no more."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(work).result()


def row_of(name: str, arguments: argparse.Namespace) -> Row:
    """Measure one row."""
    kind, _, which = name.partition(" ")
    measured: Mapping[str, Callable[[], Row]] = {
        "selector": lambda: selector_row(SELECTORS[which], arguments.candidates),
        "comparison": lambda: comparison_row(arguments),
        "rounds": lambda: rounds_row(arguments.pool),
        "archive": lambda: archive_row(arguments.pool),
        "volume": volume_row,
    }
    return measured[kind]()


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of this process's processor time."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 3)


def peak_mib() -> int:
    """The largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform != "darwin" else 2**20)


def selector_row(select: Selector, n: int) -> Row:
    """Seconds and memory of one query."""
    rng = np.random.default_rng(0)
    candidates = Candidates(
        tuple(f"case_{i:07d}" for i in range(n)),
        scores=rng.random(n),
        class_scores=rng.random((n, 3)),
        features=grouped(n, 1),
        labelled_features=grouped(N_LABELLED, 2),
        similarity=rng.random(n),
    )
    before = peak_mib()
    seconds = seconds_of(lambda: select(candidates, QUERY_SIZE, np.random.default_rng(3)))
    return {"candidates": n, "seconds": seconds, "mib": peak_mib() - before}


def grouped(n: int, seed: int) -> np.ndarray:
    """Feature vectors [n, d] in groups of unequal sizes and spreads, the same for all seeds."""
    of_groups, rng = np.random.default_rng(7), np.random.default_rng(seed)
    share = of_groups.dirichlet(np.full(N_GROUPS, 0.5))
    centres = of_groups.standard_normal((N_GROUPS, N_FEATURES), dtype=np.float32)
    spread = of_groups.uniform(0.2, 0.7, (N_GROUPS, 1)).astype(np.float32)
    group = rng.choice(N_GROUPS, n, p=share)
    found = rng.standard_normal((n, N_FEATURES), dtype=np.float32)
    for first in range(0, n, 10_000):  # little memory beside what is measured
        rows = slice(first, first + 10_000)
        found[rows] = found[rows] * spread[group[rows]] + centres[group[rows]]
    return found


def comparison_row(arguments: argparse.Namespace) -> Row:
    """Seconds of ``alseg.compare`` over invented runs, with the imports and the page."""
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder) / "runs", arguments.strategies, arguments.seeds, arguments.rounds)
        command = [sys.executable, "-m", "alseg.compare", "runs", "--output", "page"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": arguments.strategies * arguments.seeds,
        "rounds": arguments.rounds,
        "seconds": round(usage.ru_utime - before, 2),
    }


def write_runs(root: Path, n_strategies: int, n_seeds: int, n_rounds: int) -> None:
    """Run folders with the settings of real runs, invented Dice and reliability histograms."""
    settings: Any = OmegaConf.to_container(composed(["experiment=smoke"]), resolve=True)
    settings["pool"]["rounds"] = n_rounds
    for strategy in ("random", *(f"strategy_{i:02d}" for i in range(1, n_strategies))):
        for seed in range(1, n_seeds + 1):
            folder = root / f"{strategy}_seed{seed}"
            settings["strategy"]["name"], settings["seed"] = strategy, seed
            write_run(folder, settings, zlib.crc32(strategy.encode()) + seed)


def write_run(folder: Path, settings: Mapping[str, Any], seed: int) -> None:
    """One run folder, of five cases a round."""
    rng, n_rounds = np.random.default_rng(seed), settings["pool"]["rounds"]
    cases = [f"case_{i:04d}" for i in range(5 * n_rounds + 50)]
    state = RunState(Pool.start(cases, cases[:5]), "hash", queries=query_rows(0, cases[:5]))
    for number in range(1, n_rounds + 1):
        path = round_folder(folder, number)
        path.mkdir(parents=True)
        edges = np.linspace(0, 1, 16)
        lines = [f"{a},{b},1000,{b},{a}" for a, b in pairwise(edges)]
        header = "bin_low,bin_high,n_voxels,confidence,accuracy"
        (path / "calibration.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
        dice = 0.9 - 0.4 * (5 * number) ** -0.6 + rng.normal(0, 0.004)
        names = [f"{part}_dice{of}" for part in ("val", "test") for of in ("", "_liver", "_tumour")]
        row = {"round": number, "labelled": 5 * number, **dict.fromkeys(names, dice)}
        query = cases[5 * number : 5 * number + 5] if number < n_rounds else []
        state = state.after_round(
            state.pool.acquire(query), row, query_rows(number, query), {"round": number}
        )
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings), encoding="utf-8")
    state.save(folder)


def query_rows(number: int, cases: list[str]) -> tuple[Row, ...]:
    """Rows of queries.csv."""
    return tuple(
        {"round": number, "case_id": case, "score": 0.5, "rank": rank}
        for rank, case in enumerate(cases, 1)
    )


def rounds_row(n: int) -> Row:
    """Bytes, seconds and memory that the cases of a pool take in a round."""
    cases = [f"case_{i:07d}" for i in range(n)]
    rng = np.random.default_rng(0)
    state = RunState(Pool.start(cases, cases[:100]), "hash", queries=query_rows(0, cases[:100]))
    before = peak_mib()
    scores = tuple(
        CaseScore(case, 0.5 * (1 + float(rng.random())), features=feature_vector(rng.random(128)))
        for case in cases
    )
    found: Row = {"cases": n, "mib of scores": peak_mib() - before}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, 11):
            query = list(state.pool.unlabelled[:100])
            rows = query_rows(number, query)
            row = {"round": number, "labelled": 100 * number, "val_dice": 0.8}
            state = state.after_round(state.pool.acquire(query), row, rows, {"round": number})
            if number in (1, 10):
                found[f"seconds to save round {number}"] = seconds_of(partial(state.save, folder))
                path = folder / STATE_FILE
                found[f"bytes of state, round {number}"] = path.stat().st_size
        found["seconds to load"] = seconds_of(partial(RunState.load, folder))
        chosen = Chosen((), {}, scores)
        found["seconds of score files"] = seconds_of(partial(write_scores, folder, chosen))
        for file in ("scores.csv", "features.csv"):
            found[f"bytes a case of {file}"] = round((folder / file).stat().st_size / n, 1)
    return found


def archive_row(n: int) -> Row:
    """Seconds, bytes and memory that scans take in ``alseg.score``, beside looking at them."""
    found: Row = {"scans": n}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        for i in range(n):
            if i % 1_000 == 0:
                (images / f"{i // 1_000:04d}").mkdir(parents=True)
            (images / f"{i // 1_000:04d}" / f"ct_{i:07d}.nii.gz").touch()
        before = peak_mib()
        found["seconds to list"] = seconds_of(lambda: found.update(listed=archive_of(images, 1)))
        found["mib of ids and paths"] = peak_mib() - before
        cases = found.pop("listed")
        table = ScoreTable(folder, 0, 1)
        table.keep(lambda row: True)

        def score_all() -> None:
            for i, case_id in enumerate(cases):
                score = (i * 7919 % n) / n
                table.append(case_id, "done", score=score, seconds=1.234, made_of="0" * 16)

        found["seconds of rows"] = seconds_of(score_all)
        found["bytes a scan"] = round(table.path.stat().st_size / n, 1)
        before = peak_mib()
        found["seconds of top"] = seconds_of(lambda: top_of([table.path], 100))
        found["mib of top"] = peak_mib() - before
        found["seconds to read again"] = seconds_of(lambda: table.keep(lambda row: True))
    return found


def volume_row() -> Row:
    """Seconds of one volume of 96 x 96 x 96 voxels: ten passes of a small UNet on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, dropout=0.2).eval()
    inferer = SlidingWindowInferer((96, 96, 96), sw_batch_size=1)
    scoring = Scoring(Strategy("entropy", top_k, entropy, mean), MCDropout(10), inferer, 1, 1)
    image, before = torch.rand(1, 1, 96, 96, 96), peak_mib()
    seconds = min(seconds_of(lambda: scoring.score(network, image, "case")) for _ in range(3))
    return {"seconds": seconds, "mib": peak_mib() - before}


if __name__ == "__main__":
    main()
