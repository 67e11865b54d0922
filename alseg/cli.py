"""What all ``python -m alseg.X`` entry points share: where conf/ lies, and how errors are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alseg.errors import NO_ROOM, AlsegError
from alseg.interruption import Interrupted


def conf_folder() -> str:
    """The configuration folder: in the package if installed from a wheel, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


# For the YAML files that name other files of conf/.
OmegaConf.register_new_resolver("conf_folder", conf_folder, replace=True)


def sentence(error: Exception) -> str:
    """What went wrong, without Hydra's wrapping of errors raised while it builds a part."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause, key = error.__cause__, str(error).rpartition("full_key: ")[2]
        return str(cause) if isinstance(cause, AlsegError) else f"{key}: {cause}"
    return str(error)


def print_error(error: Exception) -> None:
    """Tell the user what went wrong, in one sentence."""
    print(f"alseg: error: {sentence(error)}", file=sys.stderr)


def run_entry_point(main: Callable[[], None]) -> None:
    """Run an entry point; tell errors that the user can act on in one sentence, with exit code 2.

    ``ALSEG_TRACEBACK=1`` shows tracebacks.
    """
    wants_traceback = os.environ.get("ALSEG_TRACEBACK", "0") not in ("", "0")
    # Hydra otherwise prints a traceback of its own and ends with exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except (AlsegError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        print_error(error)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be made, a full disk
        has_room = error.errno not in NO_ROOM
        if wants_traceback or (error.filename is None and has_room):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"alseg: error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        how = f"; continue with: python -m alseg.train resume={stop.folder}" if stop.folder else ""
        print(f"alseg: {stop}{how}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("alseg: interrupted", file=sys.stderr)
        sys.exit(130)
