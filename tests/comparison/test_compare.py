"""``python -m alseg.compare`` from the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from synthetic import write_run, write_sweep

from alseg import compare as entry
from alseg.compare import compare, shown_command
from alseg.comparison.output_folder import choose_folder, clear, is_taken
from alseg.comparison.runs import read_run
from alseg.core.errors import ConfigError
from alseg.system.files import write_json
from alseg.tracking.mlflow import MLflowTracker
from alseg.tracking.tracker import Trackers
from tests.terminal import run_in_terminal


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["alseg.compare", *arguments])
    try:
        entry.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_run_folders_give_a_page_and_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "runs", ("random", "power"), (1, 2, 3))
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, "runs", "--target-dice", "0.95") == 0
    printed = capsys.readouterr().out
    assert "power was the best strategy" in printed
    assert "page: runs/compare_hippocampus/index.html" in printed
    assert f"browser: {(tmp_path / 'runs/compare_hippocampus/index.html').as_uri()}" in printed
    assert (
        "power: no forecast for Dice 0.950; the curve fitted to the rounds so far levels off"
        in printed
    )
    assert (tmp_path / "runs" / "compare_hippocampus" / "index.html").is_file()
    # again, with the page among the folders that are searched
    assert exit_code(monkeypatch, "runs/random_seed1", "runs", "--output", "again") == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give either run folders, or --tracking-uri with --experiment"),
        (["{}", "--tracking-uri", "sqlite:///x.db"], "give either run folders, or"),
        (["--tracking-uri", "sqlite:///x.db"], "--tracking-uri and --experiment come together"),
        (["{}/nowhere"], "is not a folder"),
        (["{}"], "there is no complete run of the reference strategy 'random'"),
        (["{}", "--reference", "variance", "--target-dice", "2"], "--target-dice is 2.0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    write_run(tmp_path / "a", "variance", 1)
    given = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    assert exit_code(monkeypatch, *given, "--output", str(tmp_path / "page")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alseg: error: ")
    assert reason in line
    assert not (tmp_path / "page").exists()


def test_an_mlflow_experiment_gives_the_same_numbers_and_takes_the_page(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    root = write_sweep(tmp_path / "runs", ("random", "power"), (1, 2, 3))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for folder in sorted(root.iterdir()):
        run = read_run(folder)
        (folder / "rounds" / "round_01" / "best.ckpt").write_bytes(b"not fetched")
        tracker = MLflowTracker(uri, "sweep", f"{run.strategy} seed {run.seed}")
        trackers = Trackers({"mlflow": tracker})
        trackers.open(folder, {}, {"strategy": run.strategy, "seed": str(run.seed)})
        trackers.close("FINISHED")
    (tmp_path / "lost").mkdir()
    lost = Trackers({"mlflow": MLflowTracker(uri, "sweep", "power seed 4")})
    lost.open(tmp_path / "lost", {}, {"strategy": "power", "seed": "4"})
    lost.close("FAILED")

    from_files = compare([str(root), "--output", str(tmp_path / "files")])
    source = ["--tracking-uri", uri, "--experiment", "sweep"]
    from_store = compare([*source, "--output", str(tmp_path / "store"), "--log-to-mlflow", uri])
    for name in ("summary.csv", "dice.csv", "differences.csv"):
        tables = [page.parent / "tables" / name for page in (from_files, from_store)]
        assert tables[0].read_text() == tables[1].read_text()
    assert "power seed 4" in from_store.read_text()
    assert "no run folder stored, status FAILED" in from_store.read_text()

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sweep")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'comparison'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert set(runs[0].data.metrics) == {"area/power", "area/random"}
    artifacts = {entry.path for entry in client.list_artifacts(runs[0].info.run_id)}
    assert artifacts == {"index.html", "comparison.json", "figures", "tables"}
    # the comparison is not a run of a strategy
    compare([*source, "--output", str(tmp_path / "again")])


def test_a_store_without_the_experiment_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    arguments = ("--tracking-uri", uri, "--experiment", "x")
    assert exit_code(monkeypatch, *arguments) == 2
    assert f"there is no tracking store {uri}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # a name with a typo makes no store
    MlflowClient(uri).search_experiments()
    assert exit_code(monkeypatch, *arguments) == 2
    assert "has no experiment 'x'" in capsys.readouterr().err


def test_a_terminal_gets_whole_words_and_whole_paths(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", ("random", "power"), (1, 2))
    output = tmp_path / ("a_long_name_of_a_folder" * 4)
    run = run_in_terminal(
        "-m", "alseg.compare", "runs", "--output", str(output), folder=tmp_path, columns=80
    )
    assert run.exit_code == 0, run.text
    printed = run.raw.decode().replace("\r\n", "\n")
    assert f"page: {output}/index.html\n" in printed  # the terminal breaks it, we do not
    assert f"open it in a browser: {output.as_uri()}/index.html\n" in printed
    sentences = printed.partition("page: ")[0]
    assert all(len(line) <= 80 for line in sentences.splitlines())
    assert sentences.startswith("power came out highest, with too few seeds for a test: from 5 to")


RECORD = {"runs": ["a", "b"], "reference": "random", "target_dice": None}


def written(folder: Path, **changes: object) -> Path:
    """A folder with the page and the record of a comparison."""
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("a page")
    write_json(folder / "comparison.json", RECORD | changes)
    return folder


@pytest.mark.parametrize(
    ("before", "taken"),
    [
        ({}, False),  # the same runs
        ({"runs": ["a"]}, False),  # since then a run has been added
        ({"runs": ["a", "c"]}, True),
        ({"reference": "variance"}, True),
        ({"target_dice": 0.9}, True),
    ],
)
def test_a_page_is_replaced_by_one_of_the_same_runs_or_more(
    tmp_path: Path, before: dict[str, object], taken: bool
) -> None:
    folder = written(tmp_path / "compare_x", **before)
    expected = tmp_path / "compare_x_2" if taken else folder
    assert choose_folder(RECORD, None, folder, "index.html", False) == expected
    if taken:
        written(tmp_path / "compare_x_2", runs=["c"])
        third = tmp_path / "compare_x_3"
        assert choose_folder(RECORD, None, folder, "index.html", False) == third
        with pytest.raises(ConfigError, match=r"of another comparison.*--overwrite"):
            choose_folder(RECORD, folder, third, "index.html", False)
    assert choose_folder(RECORD, folder, tmp_path / "y", "index.html", True) == folder


def test_a_foreign_page_is_taken_and_a_folder_without_one_is_not(tmp_path: Path) -> None:
    assert not is_taken(tmp_path, RECORD, "index.html")
    (tmp_path / "index.html").write_text("my home page")
    assert is_taken(tmp_path, RECORD, "index.html")
    (tmp_path / "comparison.json").write_text('["not", "ours"]')
    assert is_taken(tmp_path, RECORD, "index.html")


def test_figures_and_tables_of_the_comparison_before_do_not_stay(tmp_path: Path) -> None:
    page = written(tmp_path / "page")
    for name in ("figures/old.png", "tables/old.csv", "tables/notes.txt"):
        (page / name).parent.mkdir(exist_ok=True)
        (page / name).write_text("")
    clear(page)
    assert [path.name for path in page.glob("*/*")] == ["notes.txt"]


def test_the_command_can_be_pasted_and_holds_no_password() -> None:
    given = ["my runs", "--tracking-uri", "postgresql://me:secret@host/db", "--reference", "$x"]
    printed = shown_command(given)
    assert "secret" not in printed
    assert shlex.split(printed)[3:] == [
        "my runs", "--tracking-uri", "postgresql://***@host/db", "--reference", "$x",
    ]  # fmt: skip
