"""Imports run one way; Hydra and MLflow stay in their places; nothing is unpickled."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import alseg
from alseg.core.errors import DataError
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from alseg.run import folder
from alseg.training.fit import load_weights
from tests.conftest import write_msd

PACKAGE = Path(alseg.__file__).parent
COMMANDS = {
    "annotate", "import_dicom", "plan", "train", "compare", "validate", "predict", "score",
    "export", "sync", "ui",
}  # fmt: skip
# What each package may import of alseg besides itself, from the lowest up: only packages that
# stand above it in this list. docs/architecture.md says what lives in each of them.
MAY_IMPORT = {
    "core": "",
    "curves": "",
    "system": "core",
    "networks": "core",
    "strategies": "core",
    "data": "core system strategies",
    "planning": "core system data",
    "run": "core system strategies",
    "tracking": "core system run",
    "oracles": "core system strategies data run",
    "scoring": "core networks strategies",
    "training": "core system networks strategies data scoring",
    "active": "core curves system networks strategies data run tracking oracles scoring training",
    "config": "core system networks strategies data planning run tracking oracles training active",
    "engine": "core system networks strategies data planning run tracking oracles scoring training"
    " active config",
    "annotation_page": "core system data run oracles config engine",
    "comparison": "core curves system run",
    "commands": "core system data run tracking config engine annotation_page comparison",
}
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(
    path
    for folder in ("scripts", "hydra_plugins")
    for path in (PACKAGE.parent / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def package_of(name: str) -> str:
    """The package that a module is in, or ``commands``; empty for alseg itself."""
    parts = name.removesuffix(".__init__").split(".")[1:]
    return "commands" if parts and parts[0] in COMMANDS else parts[0] if parts else ""


def modules_imported(path: Path) -> set[str]:
    """The modules of alseg that a module imports, whether at once or when it is needed."""
    names = {name_of(file).removesuffix(".__init__") for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & names
            found |= {node.module or ""} & names
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & names
    return found - {name_of(path).removesuffix(".__init__")}


def circles(imports: Mapping[str, Collection[str]]) -> list[str]:
    """The modules that import themselves by way of others."""

    def reached(name: str) -> set[str]:
        found, waiting = set(), [name]
        while waiting:
            new = set(imports.get(waiting.pop(), ())) - found
            found |= new
            waiting += new
        return found

    return [name for name in imports if name in reached(name)]


def test_at_the_root_are_commands_and_nothing_else() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *COMMANDS}
    for command in COMMANDS:
        assert is_entry_point(PACKAGE / f"{command}.py")


def test_each_package_has_its_place() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT) - {"commands"}
    packages = list(MAY_IMPORT)
    for number, (package, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(packages[:number]), package


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_down(path: Path) -> None:
    package = package_of(name_of(path))
    allowed = {"", package, *MAY_IMPORT.get(package, "").split()}
    imported = modules_imported(path)
    assert {name for name in imported if package_of(name) not in allowed} == set()
    # no module imports a command
    assert not imported & {f"alseg.{command}" for command in COMMANDS}


def test_the_table_allows_no_more_than_is_needed() -> None:
    used: dict[str, set[str]] = {package: set() for package in MAY_IMPORT}
    for path in FILES:
        if package := package_of(name_of(path)):
            used[package] |= {package_of(name) for name in modules_imported(path)} - {"", package}
    assert used == {package: set(allowed.split()) for package, allowed in MAY_IMPORT.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {name_of(path).removesuffix(".__init__"): modules_imported(path) for path in FILES}
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_hydra_is_imported_by_commands_and_config_only() -> None:
    assert {package_of(name) for name in importers("hydra")} == {"commands", "config"}


def test_mlflow_is_imported_by_tracking_only() -> None:
    assert {package_of(name) for name in importers("mlflow")} == {"tracking"}


def test_rounds_do_not_know_how_they_were_configured() -> None:
    for path in (PACKAGE / "active").glob("*.py"):
        assert not {name for name in imports_of(path) if "omegaconf" in name}


# Libraries that run what they read. multiprocessing's pipes carry pickles too, but only between a
# process and its own children; Hydra's joblib launcher and MLflow pickle within the same bounds.
PICKLERS = [
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
]
RUNS_TEXT = ("eval", "exec", "compile")
RUN_WHAT_THEY_READ = [
    "read_pickle",
    "load_model",
    "load_from_checkpoint",
    "unsafe_load",
    "unsafe_load_all",
    "full_load",
    "full_load_all",
    "load_all",
]
LOADERS = {"torch", "torch.jit", "numpy", "np", "yaml"}


def unsafe(source: str) -> list[str]:
    """What in a module could run code out of a file that others can write."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if (node.module or "").split(".")[0] in PICKLERS or (
                node.module in LOADERS and names & {"load", *RUN_WHAT_THEY_READ}
            ):
                found.append(f"from {node.module}")
        elif isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if keywords.get("allow_pickle", "False") != "False":
                found.append("allow_pickle")
            # Lightning gives the argument of what it writes the same name
            if name != "save_checkpoint" and keywords.get("weights_only", "True") != "True":
                found.append("weights_only")
            if name in RUN_WHAT_THEY_READ or (name in RUNS_TEXT and owner in ("", "builtins")):
                found.append(name)
            weights_alone = owner == "torch" and "weights_only" in keywords
            if name == "load" and owner in LOADERS - {"numpy", "np"} and not weights_alone:
                found.append(f"{owner}.load")
    return found


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not unsafe(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import joblib as j",
        "from cloudpickle import loads",
        "import shelve, json",
        "from torch import load",
        "from yaml import unsafe_load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "torch.jit.load(p)",
        "np.load(p, allow_pickle=True)",
        "pd.read_pickle(p)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.full_load(f)",
        "mlflow.pytorch.load_model(u)",
        "Module.load_from_checkpoint(p)",
        "trainer.fit(m, ckpt_path=p, weights_only=False)",
        "eval(text)",
    ],
)
def test_what_unpickles_is_found(line: str) -> None:
    assert unsafe(line)


def without_encoding(source: str) -> list[str]:
    """The calls that read or write text in the locale's encoding; ruff sees some of them only."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in {k.arg for k in node.keywords}:
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        mode = next((m for m in modes if re.fullmatch("[rwax][bt+]*", str(m))), None)
        if (
            (name in ("read_text", "write_text") and not node.args[name == "write_text" :])
            or (name in ("open", "fdopen", "NamedTemporaryFile") and mode and "b" not in mode)
            or (ast.unparse(node.func) == "open" and not mode)
            or any(k.arg in ("text", "universal_newlines") for k in node.keywords)
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=name_of)
def test_text_is_read_and_written_as_utf_8(path: Path) -> None:
    assert not without_encoding(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "json.loads((folder / name).read_text())",
        "p.read_text(errors='replace')",
        "p.write_text(text)",
        "open(p)",
        "open(p, 'w')",
        "self.path.open('a')",
        "os.fdopen(1, 'w')",
        "subprocess.run(c, text=True)",
    ],
)
def test_text_in_the_locales_encoding_is_found(line: str) -> None:
    assert without_encoding(line)


def long_functions(source: str) -> list[str]:
    """The functions whose body has over 50 lines, without a reason ``# long:`` beside the def."""
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            n_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            head = lines[node.lineno - 1 : node.body[0].lineno - 1]
            if n_lines > 50 and not any("# long:" in line for line in head):
                found.append(f"{node.name}: {n_lines} lines")
    return found


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=name_of)
def test_functions_are_short(path: Path) -> None:
    assert not long_functions(path.read_text(encoding="utf-8"))


def test_long_functions_are_found() -> None:
    body = '    """Text\n\n    of three lines.\n    """\n' + 50 * "    f()\n"
    assert not long_functions("def f():\n" + body)
    assert long_functions("def f():\n" + body + "    f()\n") == ["f: 51 lines"]
    assert not long_functions("def f():  # long: a table\n" + body + "    f()\n")


class Hostile:
    def __reduce__(self) -> tuple:
        return (os.mkdir, (os.environ["HOSTILE"],))


def test_hostile_files_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE", str(tmp_path / "made"))
    root = write_msd(tmp_path / "data", [np.zeros((4, 4, 4))], [np.zeros((4, 4, 4))])
    cache = VolumeCache(read_msd(root), [], "", tmp_path / "cache")
    cache.image("case_00")
    (entry,) = (tmp_path / "cache").glob("*.pt")
    torch.save(Hostile(), entry)
    with pytest.warns(UserWarning, match="is damaged and is computed again"):
        assert cache.image("case_00")["image"].shape == (1, 4, 4, 4)
    checkpoint = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "epoch": Hostile()}, checkpoint)
    with pytest.raises(DataError, match=r"best\.ckpt"):
        load_weights(torch.nn.Identity(), checkpoint)
    assert not (tmp_path / "made").exists()


def test_importing_reaches_no_network() -> None:
    code = (
        "import os, socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import alseg.engine.runs, alseg.tracking.mlflow\n"
        "assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_the_files_of_a_run_are_named_in_one_place() -> None:
    names = {v for v in vars(folder).values() if isinstance(v, str) and re.search(r"\w\.\w+$", v)}
    names -= {folder.__name__, folder.__file__}
    assert len(names) > 12
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert name_of(path) == folder.__name__ or not constants & names, name_of(path)
