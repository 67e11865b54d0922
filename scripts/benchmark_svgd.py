"""Time and memory of a training step of an SVGD committee against M independent networks.

    python scripts/benchmark_svgd.py [--particles 3] [--steps 10] [--size 32]

Each kind is measured in a process of its own, so that one's peak of memory is not the other's. The
independent networks are trained one after another, as ``uncertainty=ensemble`` does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from alseg.training.svgd import stein_gradients


def make_network(seed: int) -> torch.nn.Module:
    """The network of conf/model/unet_small.yaml's size."""
    torch.manual_seed(seed)
    channels, strides = (16, 32, 64, 128), (2, 2, 2)
    return UNet(3, 1, 3, channels, strides, num_res_units=2, norm="batch", dropout=0.1)


def measure(kind: str, n_particles: int, n_steps: int, size: int, answer: Connection) -> None:
    """Send the median seconds of a step of all networks, and the peak of memory above the start.

    On a CPU these are CPU seconds, which other processes do not disturb much.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    images = torch.rand(4, 1, size, size, size, device=device)
    labels = (images > 0.5).long()
    before = _peak_mb()
    groups = 1 if kind == "svgd" else n_particles
    seconds = [0.0] * n_steps
    for group in range(groups):
        seeds = range(n_particles) if kind == "svgd" else [group]
        networks = [make_network(seed).to(device) for seed in seeds]
        parameters = [p for network in networks for p in network.parameters()]
        optimizer = torch.optim.AdamW(parameters, 1e-3)
        for step in range(n_steps):
            started = clock()
            optimizer.zero_grad()
            torch.stack([loss(network(images), labels) for network in networks]).sum().backward()
            if kind == "svgd":
                stein_gradients(networks)
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[step] += clock() - started
    answer.send((statistics.median(seconds[1:]), _peak_mb() - before))


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Print both kinds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--particles", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=32, help="voxels a side of the four patches")
    options = parser.parse_args()
    results = {}
    context = multiprocessing.get_context("spawn")
    for kind in ("independent", "svgd"):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (kind, options.particles, options.steps, options.size, sender)
        process = context.Process(target=measure, args=arguments)
        process.start()
        results[kind] = receiver.recv()
        process.join()
        print(f"{kind:12} {results[kind][0]:8.3f} s a step of all  {results[kind][1]:8.0f} MiB")
    time_ratio, memory_ratio = (
        a / b for a, b in zip(results["svgd"], results["independent"], strict=True)
    )
    print(f"svgd / independent: time {time_ratio:.2f}, peak memory {memory_ratio:.2f}")


if __name__ == "__main__":
    main()
