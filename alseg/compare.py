"""Compare strategies: ``python -m alseg.compare RUN_FOLDER ...`` writes a page that answers.

The inputs are run folders (or folders that hold them), or an MLflow experiment.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from alseg.comparison.output_folder import RECORD_FILE, choose_folder, clear
from alseg.config.entry_points import run_entry_point
from alseg.core.errors import ConfigError, check_choice
from alseg.system.secrets import without_secrets
from alseg.system.text import printable

if TYPE_CHECKING:
    from alseg.comparison.analysis import Comparison
    from alseg.comparison.runs import RunSet


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m alseg.compare", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, help="run folders, or folders searched for run folders"
    )
    parser.add_argument("--tracking-uri", help="read the runs from this MLflow store instead")
    parser.add_argument("--experiment", help="the MLflow experiment (with --tracking-uri)")
    parser.add_argument(
        "--output",
        type=Path,
        help="where the page goes (default: runs/compare_DATA, or, if that compares other runs, "
        "runs/compare_DATA_2 and so on)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what --output holds of another comparison"
    )
    parser.add_argument(
        "--reference", default="random", help="the strategy the others are compared with"
    )
    parser.add_argument(
        "--budget",
        default="labelled",
        help="what the learning curves run along: labelled (units, the default), cost (that of the "
        "runs' cost model), and of runs of patches or slices also voxels, foreground_voxels, "
        "slices or effort",
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
    parser.add_argument("--version", action="store_true", help="print the versions and end")
    return parser.parse_args(arguments)


def compare(arguments: Sequence[str] | None = None) -> Path:
    """Compare runs and write the page.

    Args:
        arguments: the command line; None for the process's own.

    Returns:
        The page's path.

    Raises:
        AlsegError: with one clear sentence, if the runs cannot be read or compared, or the output
            holds another comparison.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if bool(options.folders) == bool(options.tracking_uri):
        raise ConfigError("give either run folders, or --tracking-uri with --experiment")
    if bool(options.tracking_uri) != bool(options.experiment):
        raise ConfigError("--tracking-uri and --experiment come together")
    # here, so that --help is there at once
    from alseg.comparison.analysis import analyse
    from alseg.comparison.page import PAGE_FILE, name_of_file
    from alseg.system.files import write_json

    with ExitStack() as stack:
        run_sets = read_runs(options, stack)
        comparisons = {r.data: analyse(r, options.target_dice) for r in run_sets}
        record = record_of(options, [source for r in run_sets for source in sources(options, r)])
        name = title_of(run_sets)
        default = Path("runs") / f"compare_{name_of_file(name)}"
        output = choose_folder(record, options.output, default, PAGE_FILE, options.overwrite)
        clear(output)
        page, answer = write_pages(comparisons, output, options, shown_command(given))
        write_json(output / RECORD_FILE, record)
    if options.log_to_mlflow:
        from alseg.tracking.mlflow_runs import log_comparison

        log_comparison(
            options.log_to_mlflow,
            options.experiment or name,
            output,
            metrics=areas(comparisons),
            tags={"data": ", ".join(comparisons), "reference": options.reference},
        )
    print_answer(answer, page)
    return page


def write_pages(
    comparisons: Mapping[str, Comparison], output: Path, options: argparse.Namespace, command: str
) -> tuple[Path, list[str]]:
    """Write the page of one data set, or those of several with one over all.

    Returns:
        The page, and the answer to print.
    """
    from alseg.comparison.benchmark import analyse_together, sentences_together
    from alseg.comparison.benchmark_page import write_benchmark
    from alseg.comparison.conclusions import sentences
    from alseg.comparison.page import Origin, write_comparison

    origins = {
        data: Origin.now(command, sources(options, comparison.run_set))
        for data, comparison in comparisons.items()
    }
    if len(comparisons) == 1:
        ((data, comparison),) = comparisons.items()
        return write_comparison(comparison, output, origins[data]), sentences(comparison)
    benchmark = analyse_together(comparisons)
    page = write_benchmark(benchmark, output, origins)
    by_data = [f"{data}: {sentences(c)[0]}" for data, c in comparisons.items()]
    return page, [*sentences_together(benchmark), *by_data]


def record_of(options: argparse.Namespace, sources: Sequence[str]) -> dict[str, object]:
    """What is compared and how, for comparison.json."""
    return {
        "runs": list(sources),
        "reference": options.reference,
        "target_dice": options.target_dice,
        "include_incomplete": options.include_incomplete,
        **({"budget": options.budget} if options.budget != "labelled" else {}),
    }


def sources(options: argparse.Namespace, run_set: RunSet) -> list[str]:
    """Where the runs lie; of a tracking store their ids, which are their folders' names."""
    return [run.folder.name if options.tracking_uri else str(run.folder) for run in run_set.runs]


def title_of(run_sets: Sequence[RunSet]) -> str:
    """What a comparison is called: its data set, or of several the experiment of the runs."""
    if len(run_sets) == 1:
        return run_sets[0].data
    experiments = {str(r.config.get("experiment_name")) for s in run_sets for r in s.runs}
    return experiments.pop() if len(experiments) == 1 else f"{len(run_sets)}_data_sets"


def read_runs(options: argparse.Namespace, stack: ExitStack) -> tuple[RunSet, ...]:
    """The runs of the folders, or of the tracking store, that the options name, by data set.

    Args:
        options: of the command line.
        stack: deletes, when it closes, what a tracking store has sent.
    """
    from alseg.comparison.budget import BUDGETS
    from alseg.comparison.runs import LeftOut, find_run_folders, gather_by_data

    check_choice("--budget", options.budget, BUDGETS)
    left_out: list[LeftOut] = []
    if options.tracking_uri:
        from alseg.tracking.mlflow_runs import fetch_runs

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
    return gather_by_data(
        folders,
        reference=options.reference,
        include_incomplete=options.include_incomplete,
        left_out=left_out,
        budget=options.budget,
    )


def print_answer(sentences: Sequence[str], page: Path) -> None:
    """Print the answer, wrapped to a terminal's width, and where the page is."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for sentence in sentences:
        print(textwrap.fill(printable(sentence), width) if width else printable(sentence))
    # the path and the address in one piece each, to be copied or clicked
    print("", f"page: {page}", f"open it in a browser: {page.resolve().as_uri()}", sep="\n")


def shown_command(arguments: Sequence[str]) -> str:
    """The command as it can be pasted into a shell; without passwords of addresses."""
    return shlex.join(["python", "-m", "alseg.compare", *map(without_secrets, arguments)])


def areas(comparisons: Mapping[str, Comparison]) -> dict[str, float]:
    """The mean area under the budget curve of each strategy, as metrics of the comparison run.

    Those of several data sets begin with the data set.
    """
    found: dict[str, float] = {}
    for data, comparison in comparisons.items():
        means = comparison.summaries.groupby("strategy")["area"].mean()
        first = "" if len(comparisons) == 1 else f"{data}/"
        found |= {f"{first}area/{name}": float(area) for name, area in means.items()}
    return found


def main() -> None:
    """The entry point of ``python -m alseg.compare``."""

    def run() -> None:
        compare()

    run_entry_point(run)


if __name__ == "__main__":
    main()
