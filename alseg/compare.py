"""Compare strategies: ``python -m alseg.compare RUN_FOLDER ...`` writes a page that answers.

The inputs are run folders (or folders that hold them), or an MLflow experiment.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from alseg.cli import run_entry_point
from alseg.comparison.analysis import Comparison, analyse
from alseg.comparison.answer import sentences
from alseg.comparison.page import write_comparison
from alseg.comparison.runs import LeftOut, find_run_folders, gather_runs
from alseg.errors import ConfigError
from alseg.tracking import allowed_name, fetch_runs, log_comparison


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m alseg.compare", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, help="run folders, or folders searched for run folders"
    )
    parser.add_argument("--tracking-uri", help="read the runs from this MLflow store instead")
    parser.add_argument("--experiment", help="the MLflow experiment (with --tracking-uri)")
    parser.add_argument(
        "--output", type=Path, help="where the page goes (default: runs/compare_DATA)"
    )
    parser.add_argument(
        "--reference", default="random", help="the strategy the others are compared with"
    )
    parser.add_argument(
        "--target-dice",
        type=float,
        help="of the forecast (default: 95%%, or if all reach that 99%%, of the full-data Dice)",
    )
    parser.add_argument(
        "--include-incomplete", action="store_true", help="also use runs that are not finished"
    )
    parser.add_argument(
        "--log-to-mlflow", metavar="URI", help="record the comparison in this MLflow store"
    )
    return parser.parse_args(arguments)


def compare(arguments: Sequence[str] | None = None) -> Path:
    """Compare runs and write the page.

    Args:
        arguments: the command line; None for the process's own.

    Returns:
        The page's path.

    Raises:
        AlsegError: with one clear sentence, if the runs cannot be read or compared.
    """
    options = parse(arguments)
    if bool(options.folders) == bool(options.tracking_uri):
        raise ConfigError("give either run folders, or --tracking-uri with --experiment")
    if bool(options.tracking_uri) != bool(options.experiment):
        raise ConfigError("--tracking-uri and --experiment come together")
    with ExitStack() as stack:
        left_out: list[LeftOut] = []
        if options.tracking_uri:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fetched = fetch_runs(options.tracking_uri, options.experiment, scratch)
            folders = [run.folder for run in fetched if run.has_files]
            left_out = [
                LeftOut(run.name, f"no run folder stored, status {run.status}")
                for run in fetched
                if not run.has_files
            ]
        else:
            folders = list(find_run_folders(options.folders))
        run_set = gather_runs(
            folders,
            reference=options.reference,
            include_incomplete=options.include_incomplete,
            left_out=left_out,
        )
        comparison = analyse(run_set, options.target_dice)
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in run_set.data)
        output = options.output or Path("runs") / f"compare_{name}"
        page = write_comparison(comparison, output)
    if options.log_to_mlflow:
        log_comparison(
            options.log_to_mlflow,
            options.experiment or run_set.data,
            output,
            metrics=areas(comparison),
            tags={"data": run_set.data, "reference": options.reference},
        )
    print(*sentences(comparison), "", f"page: {page}", sep="\n")
    return page


def areas(comparison: Comparison) -> dict[str, float]:
    """The mean area under the budget curve of each strategy, as metrics of the comparison run."""
    means = comparison.summaries.groupby("strategy")["area"].mean()
    return {f"area/{allowed_name(name)}": float(area) for name, area in means.items()}


def main() -> None:
    """The entry point of ``python -m alseg.compare``."""

    def run() -> None:
        compare()

    run_entry_point(run)


if __name__ == "__main__":
    main()
