"""How errors are reported: in one sentence, and with an exit code."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from alseg.config.command_line import how_to_quote
from alseg.config.composition import conf_folder
from alseg.config.earlier_versions import moved_in
from alseg.core.errors import NO_ROOM, AlsegError, ConfigError, NotAnnotatedYetError, nearest
from alseg.system.console import remove_bar
from alseg.system.interruption import Interrupted
from alseg.system.secrets import VARIABLE, without_secrets
from alseg.system.text import printable

# Libraries that read the configuration: what they raise is about the command line or a YAML file.
COMPOSERS = ("hydra", "omegaconf", "yaml", "antlr4")


def sentence(error: BaseException) -> str:
    """What went wrong, in one line: without Hydra's wrapping, a loader's traceback and secrets."""
    return printable(without_secrets(" ".join(_message(error).split())))


def _message(error: BaseException) -> str:
    if isinstance(error, AlsegError):
        return _from_loader_process(str(error))
    if missing := re.search(rf"Environment variable '({VARIABLE}\w+)' not found", str(error)):
        return _kept_back(missing[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)) and (
        now := moved_in(str(error))
    ):
        return now
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
    if lacking := re.match(r"Could not override '(\S+)'\. No match in the def", str(error)):
        return (
            f"nothing that was chosen has a {lacking[1]} to exchange; one is added with "
            f"+{lacking[1]}=..."
        )
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
    """The override that gives a group something that is not a name, such as null."""
    for argument in arguments:
        group, _, name = argument.partition("=")
        options = sorted(path.stem for path in Path(conf_folder(), group).glob("*.yaml"))
        if group and options and name not in options:
            return _unknown_choice(f"{group}/{name}", options)
    return ""


def _unknown_setting(error: OmegaConfBaseException) -> str:
    name, parent = str(error.full_key or error.key), error.parent_node
    siblings = [str(key) for key in parent] if parent is not None else []
    group, _, key = name.rpartition(".")
    own = [sibling for sibling in siblings if not sibling.startswith("_")]
    beside = f", and {group} has {', '.join(own)} only" if group and 0 < len(own) < 5 else ""
    if choice := _choice_with(group, key):
        return f"there is no setting {name}{beside}; {group}={choice} has it"
    hint = nearest(key, siblings)
    return f"there is no setting {name}{beside}; {hint}a new one is added with +{name}=..."


def _choice_with(group: str, key: str) -> str:
    """The choice of a group that has a setting; empty if none has."""
    for path in sorted(Path(conf_folder(), group).glob("*.yaml")) if group else ():
        if re.search(rf"^{re.escape(key)}:", path.read_text(encoding="utf-8"), re.MULTILINE):
            return path.stem
    return ""


def _broken_reference(message: str, found_at: str | None) -> str:
    """A ${name} of no setting, with the override that brought it in, wherever it was met."""
    missing = re.search(r"'(.+)'", message)
    for argument in sys.argv[1:]:
        if missing and f"${{{missing[1]}}}" in argument:
            return f"{argument}: there is no setting {missing[1]}"
    return f"{found_at}: {message}" if found_at else message


def print_error(error: BaseException) -> None:
    """Report to the user what went wrong, in one sentence."""
    print(f"alseg: error: {sentence(error)}", file=sys.stderr)


@contextmanager
def report_errors() -> Iterator[None]:
    """Report errors that the user can act on in one sentence, with exit code 2.

    ``ALSEG_TRACEBACK=1`` shows tracebacks.
    """
    try:
        try:
            yield
        finally:
            remove_bar()
    except Interrupted as stop:
        advice = f"; continue with: python -m alseg.train {stop.resume}" if stop.resume else ""
        print(f"alseg: {stop}{advice}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except NotAnnotatedYetError as wait:
        advice = f" Then continue with: python -m alseg.train {wait.resume}" if wait.resume else ""
        print(f"{sentence(wait)}{advice}")
        sys.exit(0)
    except KeyboardInterrupt:
        print("alseg: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_user_error(error) or os.environ.get("ALSEG_TRACEBACK", "0") not in ("", "0"):
            raise
        print_error(error)
        sys.exit(2)


@contextmanager
def as_alseg_errors() -> Iterator[None]:
    """Raise what Hydra makes of a bad setting as what it is, for callers in Python.

    Raises:
        AlsegError: the one that a part has raised while Hydra built it, or else with the sentence
            that the command line would print.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(cause := error.__cause__, AlsegError):
            raise cause from cause.__cause__
        raise ConfigError(sentence(error)) from error


def is_user_error(error: Exception) -> bool:
    """Whether an error is of the user's making, and not a bug of ours."""
    if isinstance(error, (AlsegError, HydraException, OmegaConfBaseException, YAMLError)):
        return True
    if isinstance(error, OSError):  # a folder that cannot be made, a full disk
        return error.filename is not None or error.errno in NO_ROOM
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    raised_in = next(file for file in reversed(files) if not file.startswith("<"))
    return any(f"/site-packages/{name}/" in raised_in for name in COMPOSERS)
