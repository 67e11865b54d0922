"""What all ``python -m alseg.X`` entry points share."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from io import TextIOWrapper

from alseg import __version__
from alseg.config.command_line import readable
from alseg.config.composition import settle_ranks
from alseg.config.messages import report_errors
from alseg.system.memory import keep_freed_memory
from alseg.system.secrets import refer_to_secrets
from alseg.system.text import printable

# Those whose versions a bug report wants.
LIBRARIES = ("torch", "pytorch-lightning", "monai", "mlflow", "hydra-core", "numpy")


def versions() -> str:
    """The version of alseg, and of the libraries that results depend on; none is imported."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"alseg {__version__} (Python {platform.python_version()}, {libraries})"


def run_entry_point(main: Callable[[], None]) -> None:
    """Run an entry point; see ``report_errors``. ``--version`` is ours, not Hydra's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    if "--version" in sys.argv[1:]:
        print(versions())
        return
    with report_errors():
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
    keep_freed_memory()
    run_entry_point(main)
