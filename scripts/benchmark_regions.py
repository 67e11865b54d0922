"""Seconds and peak memory of scoring the regions of a volume, against scoring it as a whole.

    python scripts/benchmark_regions.py                   256 x 256 x 256 voxels, on the CPU
    python scripts/benchmark_regions.py --edge 96 --repeats 5
    python scripts/benchmark_regions.py --device cuda

Each way runs in a process of its own: the same network of random weights, the same passes, with
entropy and mean. Goal: at most 1.1 times the time, 1.2 times the memory. Memory is the largest
resident set of the process less what it has before it scores; on a GPU what torch has allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

from alseg.data.regions import Grid
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import MCDropout
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import entropy
from alseg.strategies.selectors.ranked import top_k
from alseg.strategies.strategy import Strategy

WAYS = ("volume", "patch", "slice")
GOAL_TIME, GOAL_MEMORY = 1.1, 1.2


def main() -> None:
    """Measure all ways, each in a process, or one in this process."""
    arguments = parsed()
    if arguments.way is not None:
        print(json.dumps(measured(arguments)))
        return
    found = {way: of_a_process(way) for way in WAYS}
    whole = found["volume"]
    print(f"{arguments.edge}^3 voxels, {arguments.passes} passes, {arguments.device}")
    print(f"{'scored':<8} {'seconds':>8} {'times':>6} {'MiB':>8} {'times':>6}")
    for way, row in found.items():
        times = row["seconds"] / whole["seconds"], row["mib"] / whole["mib"]
        print(f"{way:<8} {row['seconds']:8.2f} {times[0]:6.2f} {row['mib']:8.0f} {times[1]:6.2f}")
    print(f"goal: at most {GOAL_TIME} times the seconds and {GOAL_MEMORY} times the memory")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=256, help="voxels an axis")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--regions", type=int, default=20, help="of the query")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process")
    return parser.parse_args()


def of_a_process(way: str) -> dict[str, float]:
    """What a process that measures one way says."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of one way."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, dropout=0.2).to(device).eval()
    shape = (arguments.edge,) * 3
    image = torch.rand(1, 1, *shape, device=device)
    score = scorer(arguments, shape)
    before = memory(device)
    seconds = []
    for _ in range(arguments.repeats):
        # on a CPU the seconds of this process, whatever else the machine is doing
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        started = clock()
        score(network, image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return {"seconds": min(seconds), "mib": memory(device) - before}


def scorer(
    arguments: argparse.Namespace, shape: tuple[int, ...]
) -> Callable[[torch.nn.Module, torch.Tensor], Any]:
    """What scores an image with a network, in the way that the command line asks for."""
    strategy = Strategy("entropy", top_k, entropy, mean)
    inferer = SlidingWindowInferer((96, 96, 96), sw_batch_size=2, overlap=0.25)
    source = MCDropout(arguments.passes)
    grid = Grid.of(
        {
            "image": torch.empty(1, *shape, device="meta"),
            "affine": torch.eye(4),
            "source_affine": torch.eye(4),
            "source_shape": torch.tensor(shape),
        }
    )
    size = (1, *shape[1:]) if arguments.way == "slice" else (32, 32, 32)
    if arguments.way == "volume":
        whole = Scoring(strategy, source, inferer, 1, 1)
        return lambda network, image: whole.score(network, image, "case")
    places = grid.places(size, n_most=arguments.regions)
    scoring = Scoring(strategy, source, inferer, 1, 1, places=lambda case_id: places)
    return lambda network, image: scoring.regions(network, image, "case")


def memory(device: torch.device) -> float:
    """The peak so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (1024 if sys.platform != "darwin" else 2**20)


if __name__ == "__main__":
    main()
