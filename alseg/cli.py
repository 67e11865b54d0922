"""What all ``python -m alseg.X`` entry points share: conf/, its parts, and how errors are told."""

from __future__ import annotations

import copy
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from alseg import __version__
from alseg.command_line import how_to_quote, readable
from alseg.console import remove_bar
from alseg.errors import NO_ROOM, AlsegError, ConfigError, nearest
from alseg.interruption import Interrupted
from alseg.secrets import VARIABLE, refer_to_secrets, without_secrets
from alseg.stores import default_store
from alseg.text import literal, printable

# Libraries that read the configuration: what they raise is about the command line or a YAML file.
COMPOSERS = ("hydra", "omegaconf", "yaml", "antlr4")
# Those whose versions a bug report wants.
LIBRARIES = ("torch", "pytorch-lightning", "monai", "mlflow", "hydra-core", "numpy")
# What Lightning takes for this process's number as it is imported, whoever has set it.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


def conf_folder() -> str:
    """The configuration folder: in the package if installed from a wheel, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def folder_name(folder: object) -> str:
    """The name of a data set's folder, however the path to it is written; nothing is read."""
    return Path(os.path.abspath(str(folder))).name or "data"


# For the YAML files that name other files of conf/.
OmegaConf.register_new_resolver("conf_folder", conf_folder, replace=True)
OmegaConf.register_new_resolver("tracking_store", default_store, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration of alseg.train, with the running entry point's search path."""
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(overrides))
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        return compose("config", list(overrides))


def part(node: Any, **arguments: Any) -> Any:
    """Instantiate a configuration node; plain lists and dicts, which libraries check for."""
    if OmegaConf.is_config(node):
        node = _settled(node)
    # instantiate resolves references in the arguments, twice
    return instantiate(node, _convert_="all", **literal(literal(arguments)))


def _settled(node: Any) -> Any:
    """A node whose values are what they stand for, such as a path with a ``${`` in it."""
    content: Any = OmegaConf.to_container(node, resolve=True)
    if "${" not in str(content):
        return node
    node = copy.deepcopy(node)
    items = content.items() if isinstance(content, dict) else enumerate(content)
    with flag_override(node, ["struct", "readonly"], [False, False]):
        for key, value in items:
            node[key] = literal(literal(value))  # instantiate resolves what it has resolved
    return node


def sentence(error: BaseException) -> str:
    """What went wrong, in one line: without Hydra's wrapping, a loader's traceback and secrets."""
    return printable(without_secrets(" ".join(_message(error).split())))


def _message(error: BaseException) -> str:
    if isinstance(error, AlsegError):
        return _from_loader_process(str(error))
    if missing := re.search(rf"Environment variable '({VARIABLE}\w+)' not found", str(error)):
        return _kept_back(missing[1])
    if isinstance(error, InstantiationException):
        cause, key = error.__cause__, str(error).rpartition("full_key: ")[2]
        if isinstance(cause, AlsegError):
            return str(cause)
        if cause is None or not key:
            return str(error)
        return _missing_target(str(error), key) or f"{key}: {cause}"
    if isinstance(error, OverrideParseException):
        return how_to_quote(error.override)
    if ambiguous := re.match(r"Ambiguous value for argument '(.+)'\n", str(error)):
        return how_to_quote(ambiguous[1])
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_choice(error.missing_cfg_file or "", list(error.options))
    if isinstance(error.__cause__, OmegaConfBaseException) and "Could not override" in str(error):
        return _unknown_setting(error.__cause__)
    if isinstance(error, MissingMandatoryValue):
        return _not_set(str(error.full_key))
    if isinstance(error, InterpolationToMissingValueError):
        return _not_set(str(error).splitlines()[0].rpartition(" ")[2])
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return f"there is no setting {error.full_key or error.key}, which alseg needs"
    if isinstance(error, InterpolationKeyError):
        return _broken_reference(str(error).splitlines()[0], error.full_key)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).partition(' full_key:')[0].splitlines()[0]}"
    if "Config group override must be a string or a list" in str(error):
        return _no_choice(sys.argv[1:]) or str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a YAML file of the configuration is not UTF-8: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return str(error.strerror)
    return str(error)


def _not_set(name: str) -> str:
    what = "/path/to/DATA_SET (the folder that holds its dataset.json)"
    return f"{name} is not set; add {name}={what if name == 'data.root' else '...'} to the command"


def _kept_back(variable: str) -> str:
    return (
        "run folders keep no passwords and tokens: give the setting that needs one again, or set "
        f"the environment variable {variable}"
    )


def _from_loader_process(message: str) -> str:
    """A loader process's error as it was raised there, without its traceback."""
    if "in DataLoader worker process" not in message:
        return message
    return re.split(r"\n\S*Error: ", message)[-1]


def _missing_target(message: str, key: str) -> str:
    """A ``_target_`` that its module lacks; empty if it is missing for another reason."""
    found = re.search(r"Error (?:loading|locating target) '([\w.]+)'", message)
    module, _, name = found[1].rpartition(".") if found else ("", "", "")
    if module not in sys.modules or hasattr(sys.modules[module], name):
        return ""
    names = [n for n in dir(sys.modules[module]) if not n.startswith("_")]
    return f"{key}._target_: {module} holds no {name}; {nearest(name, names)}".rstrip("; ")


def _unknown_choice(choice: str, options: list[str]) -> str:
    group, _, name = choice.rpartition("/")
    return f"{group} is {name!r}; {nearest(name, options)}allowed are {', '.join(options)}"


def _no_choice(arguments: list[str]) -> str:
    """The override that gives a group something that is no name, such as null."""
    for argument in arguments:
        group, _, name = argument.partition("=")
        options = sorted(path.stem for path in Path(conf_folder(), group).glob("*.yaml"))
        if group and options and name not in options:
            return _unknown_choice(f"{group}/{name}", options)
    return ""


def _unknown_setting(error: OmegaConfBaseException) -> str:
    name, parent = str(error.full_key or error.key), error.parent_node
    siblings = [str(key) for key in parent] if parent is not None else []
    hint = nearest(name.rpartition(".")[2], siblings)
    return f"there is no setting {name}; {hint}a new one is added with +{name}=..."


def _broken_reference(message: str, found_at: str | None) -> str:
    """A ${name} of no setting, with the override that brought it in, wherever it was met."""
    missing = re.search(r"'(.+)'", message)
    for argument in sys.argv[1:]:
        if missing and f"${{{missing[1]}}}" in argument:
            return f"{argument}: there is no setting {missing[1]}"
    return f"{found_at}: {message}" if found_at else message


def print_error(error: BaseException) -> None:
    """Tell the user what went wrong, in one sentence."""
    print(f"alseg: error: {sentence(error)}", file=sys.stderr)


@contextmanager
def told() -> Iterator[None]:
    """Tell errors that the user can act on in one sentence, with exit code 2.

    ``ALSEG_TRACEBACK=1`` shows tracebacks.
    """
    try:
        try:
            yield
        finally:
            remove_bar()
    except Interrupted as stop:
        how = f"; continue with: python -m alseg.train {stop.resume}" if stop.resume else ""
        print(f"alseg: {stop}{how}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("alseg: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_the_users(error) or os.environ.get("ALSEG_TRACEBACK", "0") not in ("", "0"):
            raise
        print_error(error)
        sys.exit(2)


def is_the_users(error: Exception) -> bool:
    """Whether an error is of the user's making, and not a bug of ours."""
    if isinstance(error, (AlsegError, HydraException, OmegaConfBaseException, YAMLError)):
        return True
    if isinstance(error, OSError):  # a folder that cannot be made, a full disk
        return error.filename is not None or error.errno in NO_ROOM
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    raised_in = next(file for file in reversed(files) if not file.startswith("<"))
    return any(f"/site-packages/{name}/" in raised_in for name in COMPOSERS)


def versions() -> str:
    """The version of alseg, and of the libraries that results depend on; none is imported."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"alseg {__version__} (Python {platform.python_version()}, {libraries})"


def settle_ranks() -> None:
    """Forget ranks in the environment that are no numbers, before Lightning stumbles over them.

    Raises:
        ConfigError: if torchrun has started this process, which then has to have a number.
    """
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    for name in {*RANKS, *(OF_TORCHRUN if under_torchrun else ())} & set(os.environ):
        value = os.environ[name].strip()
        if value.isascii() and value.isdigit():
            continue
        if under_torchrun and name in OF_TORCHRUN:
            raise ConfigError(
                f"the environment variable {name} is {os.environ[name]!r}, and torchrun gives it a "
                "number; start with torchrun, or unset TORCHELASTIC_RUN_ID for a run of one process"
            )
        del os.environ[name]


def run_entry_point(main: Callable[[], None]) -> None:
    """Run an entry point; see ``told``. ``--version`` is answered here, for Hydra has its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    if "--version" in sys.argv[1:]:
        print(versions())
        return
    with told():
        settle_ranks()
        main()


def run_hydra_entry_point(main: Callable[[], None]) -> None:
    """Run an entry point whose arguments Hydra reads, without the secrets in them."""
    if any(argument.startswith("--experimental-rerun") for argument in sys.argv[1:]):
        print("alseg: error: --experimental-rerun unpickles a file; use resume=", file=sys.stderr)
        sys.exit(2)
    for argument in sys.argv[1:]:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            encoding = sys.getfilesystemencoding()
            print(
                f"alseg: error: {printable(argument)} is not {encoding}, the encoding of this "
                "locale; set LC_ALL to the one that it was typed in, such as C.UTF-8",
                file=sys.stderr,
            )
            sys.exit(2)
    sys.argv[1:] = map(readable, refer_to_secrets(sys.argv[1:]))
    # Hydra otherwise prints a traceback of its own and ends with exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    run_entry_point(main)
