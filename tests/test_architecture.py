"""Imports run one way; Hydra and MLflow stay in their places; nothing is unpickled."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import alseg

PACKAGE = Path(alseg.__file__).parent
LEAVES = {f"alseg.{n}" for n in ("errors", "pool", "seeding", "distributed", "strategies")}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def importers(library: str) -> set[str]:
    return {
        name_of(path)
        for path in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imports_of(path))
    }


def is_entry_point(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


def test_hydra_is_imported_by_entry_points_alone() -> None:
    entry_points = {name_of(path) for path in FILES if is_entry_point(path)}
    assert importers("hydra") <= entry_points | {"alseg.cli"}


def test_mlflow_is_imported_by_tracking_alone() -> None:
    assert importers("mlflow") == {"alseg.tracking"}


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("alseg.pool", {"alseg.errors"}),
        ("alseg.seeding", set()),
        ("alseg.errors", set()),
        ("alseg.distributed", set()),
        ("alseg.strategies", {"alseg.errors", "alseg.strategies"}),
        ("alseg.data", LEAVES | {"alseg.data"}),
        ("alseg.state", LEAVES),
        ("alseg.costs", LEAVES | {"alseg.data.volumes"}),
        ("alseg.evaluation", LEAVES),
        ("alseg.models", LEAVES | {"alseg.evaluation", "alseg.models"}),
    ],
)
def test_imports_run_one_way(part: str, allowed: set[str]) -> None:
    files = [p for p in FILES if name_of(p) == part or name_of(p).startswith(f"{part}.")]
    assert files
    for path in files:
        own = {name for name in imports_of(path) if name.startswith("alseg")}
        wrong = {n for n in own if not any(n == a or n.startswith(f"{a}.") for a in allowed)}
        assert not wrong, f"{name_of(path)} imports {wrong}"


def test_rounds_do_not_know_how_they_were_configured() -> None:
    assert not {name for name in imports_of(PACKAGE / "rounds.py") if "omegaconf" in name}
    assert not {"alseg.train", "alseg.cli"} & imports_of(PACKAGE / "rounds.py")


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if call == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", path
            assert call not in {"pickle.load", "pickle.loads", "yaml.load", "eval", "exec"}, path
            if call in {"np.load", "numpy.load"}:
                assert "allow_pickle" not in {k.arg for k in node.keywords}, path


def test_importing_reaches_no_network() -> None:
    code = (
        "import os, socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import alseg.train\n"
        "assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
