"""What does scoring a pool cost, and does the cheaper way choose the same volumes?

    python scripts/benchmark_acquisition.py --json runs/benchmark/phantom.json
    python scripts/benchmark_acquisition.py --data hippocampus \
        --data-root ../shared/data/Task04_Hippocampus --json runs/benchmark/hippocampus.json
    python scripts/benchmark_acquisition.py --quick
    python scripts/benchmark_acquisition.py --run runs/mine --window 32 32 32

Trains a small network on some of the volumes, once, or takes that of a run's first round (nothing
is written into its folder), and scores the others with the strategy ``variance``: by one
deterministic pass (the least that any score of a network can cost), in the classic way (MONAI's
inferer, T passes, all kept, NumPy's variance; code of its own), and by alseg with each lever by
itself and all together. The JSON file is written after each part; started again with the same file,
the script continues from there. It prints a Markdown table and draws the cost against the agreement
beside the JSON file.

The classic way makes 50 passes (``--reference``), from random numbers of its own. All of them are
the reference; its groups of T passes are the classic way under several seeds, so that they say how
well it agrees with itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import SlidingWindowInferer
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from alseg.config.build import build
from alseg.config.messages import report_errors
from alseg.core.errors import ConfigError
from alseg.engine.trained_run import TrainedRun, load_trained
from alseg.run.state import RunState
from alseg.scoring.scorer import Scoring
from alseg.scoring.shrinkage import settled
from alseg.scoring.sources import MCDropout, plain_pass
from alseg.strategies import aggregations, measures
from alseg.strategies.selectors import ranked
from alseg.strategies.statistics import entropy_of
from alseg.strategies.strategy import Strategy
from alseg.system.files import write_atomically

STRATEGY = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
QUICK_LIMIT = 20  # passes of the reference
PLACEMENTS = ("all", "decoder", "bottleneck")
TIMED = 6  # volumes on which the classic way is timed
TRAINING = {
    # At least 160 x 160 x 128 voxels at the tutorial's spacing: sizes vary by 15% an axis.
    "phantom": [
        "data=phantom", "data.phantom.n_volumes=56", "data.phantom.size=[189,189,151]",
        "data.phantom.hard_fraction=0.25", "data.phantom.tumour_rate=0.7",
        "data.phantom.tumour_scale=1", "data.crop_ratios=[1,1,2]",
        "+data.phantom.spacing_mm=[1.5,1.5,2.0]", "data.preprocess.1.pixdim=[1.5,1.5,2.0]",
        "data.patch_size=[64,64,64]", "data.inferer.roi_size=[64,64,64]", "data.batch_size=2",
        "data.splits.validation=0.08", "data.splits.test=0.08", "pool.initial=8",
        # long enough for the background to be sure: after 500 steps a gate kept 86 of 100 windows
        "steps_per_round=2500", "val_interval=500", "+data.inferer.mode=gaussian",
        # smaller windows than for evaluation: fewer of them touch the liver
        "data.scoring_inferer={_target_:monai.inferers.SlidingWindowInferer,roi_size:[48,48,48],"
        "sw_batch_size:8,overlap:0.25,mode:gaussian}",
    ],
    "hippocampus": [
        "data=msd_hippocampus", "pool.initial=20", "steps_per_round=500", "val_interval=250",
    ],
    "quick": [
        "data=phantom", "data.phantom.n_volumes=14", "data.phantom.size=40", "model=unet_tiny",
        "data.phantom.hard_fraction=0.25", "data.phantom.tumour_rate=0.7",
        "data.phantom.tumour_scale=1", "data.crop_ratios=[1,1,2]",
        "data.preprocess.1.pixdim=[8.0,8.0,6.25]", "data.inferer.roi_size=[24,24,24]",
        "data.patch_size=[24,24,24]", "data.splits.validation=0.08", "data.splits.test=0.08",
        "pool.initial=4", "steps_per_round=40", "val_interval=40",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way to score the pool."""

    name: str
    n_passes: int
    seed: int
    gate: float | None = None
    schedule: str = "fixed"

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.name} | {self.n_passes} | {self.seed}"


@dataclass(frozen=True)
class Setting:
    """What is scored, and with what."""

    network: nn.Module
    inferer: Any
    load: Callable[[str], Tensor]
    cases: Sequence[str]
    precision: Callable[[], Any]


def main() -> None:
    """Read the command line; errors of the user's are told in a sentence."""
    arguments = parsed()
    with report_errors():
        if arguments.peak:
            print(json.dumps(peak(arguments)))
        else:
            run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is left, and report."""
    record = Record(arguments.json)
    setting = prepared(arguments, record)
    record.time("deterministic", lambda: deterministic(setting))
    record.time("classic", lambda: classic(setting))
    record.time("precision", lambda: precisions(setting))
    n_reference = QUICK_LIMIT if arguments.quick else arguments.reference
    for number, case_id in enumerate(setting.cases, 1):
        print(f"reference {number}/{len(setting.cases)}", file=sys.stderr)
        record.time(
            f"reference/{case_id}", partial(reference, setting, case_id, n_reference, number)
        )
    for row in rows(arguments):
        print(row.key, file=sys.stderr)
        record.time(f"row/{row.key}", partial(scored, setting, row))
    # a tiny volume's peak is that of the imports
    for way, n_passes in () if arguments.quick else product(("classic", "all"), (5, 50)):
        record.time(f"peak/{way}/{n_passes}", partial(peak_of_process, arguments, way, n_passes))
    table = summary(record, setting.cases)
    record.keep("summary", table.to_dict("records"))
    record.keep("ceiling", ceiling(record, setting.cases))
    print(report(record, table))
    draw(table, record.results["ceiling"], arguments.json.with_suffix(".png"))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--data", choices=("phantom", "hippocampus"), default="phantom", help="to train on")
    add("--data-root", type=Path, help="folder of MSD Task04, for --data hippocampus")
    add("--run", type=Path, help="a run folder: its first round's network, its unlabelled volumes")
    add("--window", type=int, nargs=3, help="voxels of a scoring window, in place of the run's")
    add("--placement", default="all", choices=PLACEMENTS, help="of dropout in what is trained")
    add("--volumes", type=int, default=40, help="of the pool that are scored, the first by name")
    add("--seeds", type=int, default=5, help="of all levers together at T = 10")
    add("--reference", type=int, default=50, help="passes of the classic way, 20, 30, ...")
    add("--gates", type=float, nargs="+", default=[0.1, 0.5], help="of uncertainty.gate")
    add("--passes", type=int, nargs="+", default=[10, 5, 20], choices=(5, 10, 20), help="T")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--bf16", action="store_true", help="train and score in bf16-mixed")
    add("--quick", action="store_true", help="tiny volumes, a minute on 2 cores")
    add("--folder", type=Path, default=Path("runs/benchmark"), help="for training")
    add("--json", type=Path, help="default: in the folder")
    add("--peak", nargs=2, metavar=("WAY", "T"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference < 20 or arguments.reference % 10:
        parser.error("--reference must be 20, 30, 40, ...: groups of ten passes that are compared")
    if arguments.volumes < 3 or arguments.seeds < 1:
        parser.error("--volumes must be at least 3, and --seeds at least 1")
    if arguments.data == "hippocampus" and not (arguments.data_root or arguments.run):
        parser.error("--data hippocampus needs --data-root, the folder of MSD Task04_Hippocampus")
    if arguments.quick:
        arguments.volumes, arguments.seeds, arguments.passes = 6, 2, [10]
    name = "quick" if arguments.quick else arguments.data
    if arguments.run is not None:
        name = arguments.run.resolve().name
    arguments.json = arguments.json or arguments.folder / f"{name}_{arguments.placement}.json"
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """The ways of alseg: all levers together, and each by itself."""
    for n_passes in arguments.passes:
        for gate in arguments.gates:
            for seed in range(1, 1 + (arguments.seeds if n_passes == 10 else 1)):
                yield Row(f"all, gate {gate:g}", n_passes, seed, gate, "adaptive")
            yield Row(f"gate {gate:g}", n_passes, 1, gate)
        yield Row("adaptive passes", n_passes, 1, schedule="adaptive")
        yield Row("exact (shared prefix)", n_passes, 1)


class Record:
    """Results by name, in a JSON file that is complete after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )

    def check(self, cases: Sequence[str], measured_with: dict[str, Any]) -> None:
        """Check that what is already in the file was measured on the same, in the same way.

        Raises:
            ConfigError: if it was not.
        """
        before = self.results.get("setting")
        if before is None:
            return
        now = {"cases": list(cases), **measured_with}
        for name, value in now.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{self.path} was measured with another setting ({name}: {before.get(name)}, "
                    f"now {value}); name another file with --json, or delete that one"
                )

    def time(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure what has not been measured yet."""
        if name not in self.results:
            self.keep(name, measure())

    def keep(self, name: str, result: Any) -> None:
        """Write a result down."""
        self.results[name] = result
        write_atomically(self.path, json.dumps(self.results, indent=1))


# What is scored.


def run_folder(arguments: argparse.Namespace) -> Path:
    """Where the network is trained."""
    if arguments.run is not None:
        return Path(arguments.run)
    name = "quick" if arguments.quick else arguments.data
    return Path(arguments.folder) / f"training_{name}_{arguments.placement}"


def prepared(arguments: argparse.Namespace, record: Record) -> Setting:
    """Train, unless that has been done, and load the network and the pool."""
    folder = run_folder(arguments)
    if arguments.run is None and not (folder / "finished").exists():
        settings = TRAINING["quick" if arguments.quick else arguments.data]
        if arguments.data == "hippocampus" and not arguments.quick:
            settings = [*settings, f"data.root={arguments.data_root}"]
        command = [
            *(sys.executable, "-m", "alseg.train", f"hydra.run.dir={folder}", "strategy=random"),
            *("pool.rounds=1", "pictures=0", "tracking=none", f"output_dir={arguments.folder}"),
            f"model.dropout_placement={arguments.placement}",
            *(["trainer.precision=bf16-mixed"] if arguments.bf16 else []),
            *settings,
        ]
        if (folder / "state.json").exists():
            command = [sys.executable, "-m", "alseg.train", f"resume={folder}"]
        subprocess.run(command, check=True)
        (folder / "finished").touch()
    setting, trained = load(arguments)
    size = [list(setting.load(c).shape[2:]) for c in setting.cases[:3]]
    record.check(setting.cases, measured_with(arguments))
    record.keep(
        "setting",
        {
            "command": " ".join(sys.argv),
            **measured_with(arguments),
            "dice": {k: v for k, v in trained.metrics.items() if "dice" in k},
            "labelled": trained.metrics["labelled"],
            "cases": list(setting.cases),
            "sizes": size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )
    return setting


def measured_with(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all results in a JSON file must share, beside the volumes."""
    return {
        "run": str(run_folder(arguments).resolve()),
        "window": arguments.window,
        "passes of the reference": QUICK_LIMIT if arguments.quick else arguments.reference,
        "device": arguments.device + (" in bf16" if arguments.bf16 else ""),
    }


def load(arguments: argparse.Namespace) -> tuple[Setting, TrainedRun]:
    """The network of the first round, and volumes that no round of the run was trained on.

    Raises:
        ConfigError: if the network has no dropout, or too few volumes are left.
        DataError: if the folder is none of a run, or is damaged.
    """
    folder = run_folder(arguments)
    trained = load_trained(str(folder), 1)
    experiment = build(trained.config, folder)
    network = trained.network
    MCDropout(10).check(network)
    cases = sorted(RunState.load(folder).pool.unlabelled)[: arguments.volumes]
    if len(cases) < 3:
        raise ConfigError(
            f"{folder} has {len(cases)} volumes without a label, and 3 are the least that a query "
            "can be compared on: take a run with fewer rounds or a smaller query"
        )
    device = torch.device(arguments.device)

    def image(case_id: str) -> Tensor:
        return experiment.data.cache.image(case_id)["image"].unsqueeze(0).to(device)

    inferer = experiment.scoring_inferer
    if arguments.window:
        inferer = SlidingWindowInferer(
            arguments.window, sw_batch_size=8, overlap=0.25, mode="gaussian"
        )
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=arguments.bf16)
    setting = Setting(
        network=network.to(device).eval(),
        inferer=inferer,
        load=image,
        cases=cases,
        precision=precision,
    )
    return setting, trained


# The ways to score.


@contextmanager
def measured(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds, those of the processor, and windows through the network's last convolution."""
    # other layers may be part of one where the network is laid out for a CPU
    kinds = nn.Conv3d | nn.ConvTranspose3d
    *_, last = (layer for layer in setting.network.modules() if isinstance(layer, kinds))
    result: dict[str, Any] = {"forwards": 0}

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if last in (module, getattr(module, "convolution", None)):
            result["forwards"] += len(output)

    handle = register_module_forward_hook(count)
    synchronise()
    wall, processor = time.perf_counter(), time.process_time()
    try:
        with torch.no_grad(), setting.precision():
            yield result
        synchronise()
    finally:
        handle.remove()
    result["seconds"] = time.perf_counter() - wall
    result["cpu_seconds"] = time.process_time() - processor


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def deterministic(setting: Setting) -> dict[str, Any]:
    """One plain pass over each volume, the best of two; its score is the mean entropy."""
    results = {}
    for case_id in setting.cases:
        image = setting.load(case_id)
        tries = []
        for _ in range(2):
            with measured(setting) as result:
                probabilities = plain_pass(setting.network, image, setting.inferer)
            result["score"] = float(entropy_of(probabilities).double().mean())
            tries.append(result)
        results[case_id] = min(tries, key=lambda r: r["seconds"])
    return results


def classic(setting: Setting) -> dict[str, Any]:
    """What ten passes of the classic way cost, for a few volumes."""
    torch.manual_seed(0)
    results = {}
    for case_id in setting.cases[:TIMED]:
        image = setting.load(case_id)
        with measured(setting) as result:
            np.var(classic_passes(setting, image, 10)[:, 1:], axis=0)
        results[case_id] = result
    return results


def precisions(setting: Setting) -> dict[str, float]:
    """Seconds of a plain pass over a volume, the best of two, by precision and memory format."""
    image = setting.load(setting.cases[0])
    results = {}
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        setting.network.to(memory_format=memory_format)  # type: ignore[call-overload]
        for bf16 in (False, True):
            tries = []
            for _ in range(2):
                with (
                    measured(setting) as result,
                    torch.autocast(image.device.type, torch.bfloat16, enabled=bf16),
                ):
                    plain_pass(setting.network, image, setting.inferer)
                tries.append(result["seconds"])
            name = str(memory_format).removeprefix("torch.")
            results[f"{'bf16' if bf16 else 'fp32'} {name}"] = min(tries)
    setting.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return results


def classic_passes(setting: Setting, image: Tensor, n_passes: int) -> np.ndarray:
    """The classic way: T whole passes with torch's own dropout, all kept, [T, C, D, H, W]."""
    dropouts = [
        m for m in setting.network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)
    ]
    kept = []
    for module in dropouts:
        module.train()
    for _ in range(n_passes):
        kept.append(torch.softmax(setting.inferer(image, setting.network)[0].float(), 0).cpu())
    for module in dropouts:
        module.eval()
    return np.stack([p.numpy() for p in kept])


def reference(setting: Setting, case_id: str, n_passes: int, seed: int) -> dict[str, Any]:
    """Groups of 10 passes of the classic way, from which the scores after 5, 20 and all follow.

    The variance over several groups together is the mean of their variances plus the variance of
    their means.
    """
    torch.manual_seed(seed)
    image = setting.load(case_id)
    results: dict[str, Any] = {"10": [], "5": [], "20": []}
    moments: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(n_passes // 10):
        with torch.no_grad(), setting.precision():
            passes = classic_passes(setting, image, 10)
        variance = np.var(passes[:, 1:], axis=0)
        results["10"].append(float(variance.sum(0).mean(dtype=np.float64)))
        results["5"].append(float(np.var(passes[:5, 1:], axis=0).sum(0).mean(dtype=np.float64)))
        moments.append((passes[:, 1:].mean(0), variance))
    results["20"] = [together(moments[i : i + 2]) for i in range(0, len(moments) - 1, 2)]
    results["all"] = together(moments)
    return results


def together(moments: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean over voxels of the variance over several groups of equal size."""
    total = np.var([m for m, _ in moments], axis=0) + np.mean([v for _, v in moments], axis=0)
    return float(total.sum(0).mean(dtype=np.float64))


def scored(setting: Setting, row: Row) -> dict[str, Any]:
    """All volumes in alseg's way."""
    source = MCDropout(row.n_passes, row.gate, row.schedule)
    n_cases = len(setting.cases)
    rule = source.stopping_rule(STRATEGY, query_size(n_cases), n_cases)
    scoring = Scoring(STRATEGY, source, setting.inferer, row.seed, 1)
    results: dict[str, Any] = {}
    decided = []
    for case_id in setting.cases:
        case = setting.network, setting.load(case_id), case_id
        with measured(setting) as result:
            if rule is None:
                decided.append(scoring.score(*case))
            else:
                decided.append(scoring.score_until_decided(rule, *case))
        results[case_id] = result
    for score in settled(decided):
        results[score.case_id] |= {"score": score.score, "n_passes": score.n_passes}
    return results


# Memory, in a process of its own.


def peak_of_process(arguments: argparse.Namespace, way: str, n_passes: int) -> float:
    """MiB at the peak of scoring one volume in a fresh process."""
    command = [sys.executable, *sys.argv, "--peak", way, str(n_passes)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(arguments: argparse.Namespace) -> float:
    """MiB at the peak of this process (of the device, if it is a GPU)."""
    way, n_passes = arguments.peak[0], int(arguments.peak[1])
    setting, _ = load(arguments)
    image = setting.load(setting.cases[0])
    with torch.no_grad(), setting.precision():
        if way == "classic":
            np.var(classic_passes(setting, image, n_passes), axis=0)
        else:  # several volumes, as they wait for each other
            some = replace(setting, cases=setting.cases[:4])
            scored(some, Row("all", n_passes, 1, arguments.gates[0], "adaptive"))
    if image.is_cuda:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# The report.


def summary(record: Record, cases: Sequence[str]) -> pd.DataFrame:
    """One line for each way and T: cost as ratios, and agreement, means over seeds."""
    results = record.results
    plain = results["deterministic"]
    references = [results[f"reference/{c}"] for c in cases]
    everything = np.array([r["all"] for r in references])
    classic = {t: np.array([r[str(t)] for r in references]) for t in (5, 10, 20)}  # [n, groups]
    parts = ("seconds", "cpu_seconds", "forwards")
    timed = results["classic"]
    plain_cost = {name: sum(plain[c][name] for c in cases) for name in parts}
    classic_cost = {  # of all volumes, from its ratio to the plain pass over the timed ones
        name: plain_cost[name]
        * sum(timed[c][name] for c in timed)
        / sum(plain[c][name] for c in timed)
        for name in parts
    }

    def line(
        name: str, n_passes: int, seed: int, scores: np.ndarray, cost: dict[str, float]
    ) -> dict[str, Any]:
        same_t = classic[n_passes] if n_passes in classic else classic[10]
        others = [g for g in range(classic[10].shape[1]) if name != "classic" or g != seed - 1]
        return {
            "way": name,
            "T": n_passes,
            "passes": cost.get("n_passes", n_passes),
            "time / plain": cost["seconds"] / plain_cost["seconds"],
            "cpu / plain": cost["cpu_seconds"] / plain_cost["cpu_seconds"],
            "classic time / time": classic_cost["seconds"] * n_passes / 10 / cost["seconds"],
            "forwards / plain": cost["forwards"] / plain_cost["forwards"],
            "tau all": kendalltau(scores, everything).statistic,
            "tau T=10": np.mean([kendalltau(scores, classic[10][:, g]).statistic for g in others]),
            "top T=10": np.mean([overlap(scores, classic[10][:, g]) for g in others]),
            "top same T": np.mean([overlap(scores, g) for g in same_t.T]),
            "top all": overlap(scores, everything),
        }

    plain_scores = np.array([plain[c]["score"] for c in cases])
    lines = [line("deterministic (entropy)", 1, 1, plain_scores, plain_cost)]
    for n_passes, groups in classic.items():
        cost = {name: value * n_passes / 10 for name, value in classic_cost.items()}
        lines += [line("classic", n_passes, g + 1, s, cost) for g, s in enumerate(groups.T)]
    for key, row in results.items():
        if key.startswith("row/"):
            name, passes, seed = key.removeprefix("row/").split(" | ")
            cost = {part: sum(row[c][part] for c in cases) for part in parts}
            cost["n_passes"] = float(np.mean([row[c]["n_passes"] for c in cases]))
            scores = np.array([row[c]["score"] for c in cases])
            lines.append(line(name, int(passes), int(seed), scores, cost))
    return mean_over_seeds(pd.DataFrame(lines))


def mean_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """One line for each way and T, and of how many seeds."""
    table["seeds"] = 1
    aggregations = dict.fromkeys(table.columns[2:-1], "mean") | {"seeds": "sum"}
    return table.groupby(["way", "T"], as_index=False, sort=False).agg(aggregations)


def query_size(n_volumes: int) -> int:
    """5, or a third of a smaller pool."""
    return min(5, n_volumes // 3)


def overlap(scores: np.ndarray, others: np.ndarray) -> float:
    """The share of the query that is the same."""
    k = query_size(len(scores))
    return len(set(np.argsort(-scores)[:k]) & set(np.argsort(-others)[:k])) / k


def ceiling(record: Record, cases: Sequence[str]) -> dict[str, float]:
    """How well the classic way at T = 10 agrees with itself under another seed."""
    groups = np.array([record.results[f"reference/{c}"]["10"] for c in cases]).T
    pairs = list(combinations(groups, 2))
    return {
        "pairs": len(pairs),
        "top 5": float(np.mean([overlap(a, b) for a, b in pairs])),
        "tau": float(np.mean([kendalltau(a, b).statistic for a, b in pairs])),
    }


def report(record: Record, table: pd.DataFrame) -> str:
    """Markdown."""
    results = record.results
    setting = results["setting"]
    peaks = {k.removeprefix("peak/"): v for k, v in results.items() if k.startswith("peak/")}
    seconds = results["deterministic"].values()
    return "\n".join(
        [
            f"`{setting['command']}`",
            "",
            f"{len(setting['cases'])} volumes of about {setting['sizes'][0]} voxels, Dice "
            + ", ".join(f"{k} {v:.3f}" for k, v in setting["dice"].items() if "test" in k)
            + f"; a plain pass takes {np.mean([s['seconds'] for s in seconds]):.2f} s a volume "
            f"({setting['device']}, {setting['threads']} threads, torch {setting['torch']}).",
            "",
            *markdown(table),
            "",
            f"Classic T=10 against itself: {results['ceiling']}.",
            "Peak memory, MiB: "
            + (", ".join(f"{k} {v:.0f}" for k, v in peaks.items()) or "not taken"),
            "A plain pass, s: "
            + ", ".join(f"{k} {v:.2f}" for k, v in results["precision"].items())
            + ".",
        ]
    )


def markdown(table: pd.DataFrame) -> list[str]:
    """The lines of a table."""
    rows = table.round(2).to_numpy().tolist()
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def draw(table: pd.DataFrame, ceiling: dict[str, float], path: Path) -> None:
    """Cost against agreement: of the order with all passes, of the query with the classic one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_way = [
        (name, rows_of.sort_values("T")) for name, rows_of in table.groupby("way", sort=False)
    ]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    what = {
        "tau all": "Kendall's tau with all passes",
        "top T=10": "query shared with classic T=10",
    }
    for axes, (column, label) in zip(panels, what.items(), strict=True):
        for index, (name, rows_of) in enumerate(by_way):
            axes.plot(
                *(rows_of["time / plain"], rows_of[column]),
                marker="osD^v<>P"[index % 8],
                label=name,
            )
            for _, row in rows_of.iterrows():
                axes.annotate(
                    f"{row['T']:.0f}",
                    (row["time / plain"], row[column]),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize=7,
                )
        axes.set_xscale("log")
        ticks = [1, 2, 5, 10, 20, 50]
        axes.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("seconds / seconds of one deterministic pass (numbers: T)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[1].axhline(
        ceiling["top 5"], color="grey", linestyle="--", label="classic T=10, another seed"
    )
    panels[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
