"""Passwords and tokens in settings, which appear in nothing that is written, printed or logged.

A secret that is typed on the command line goes into an environment variable, and the command, as
Hydra and all other code see it, refers to that: ``http://${oc.env:ALSEG_SECRET_X}@host``.
So run folders and sweeps hold references only. The processes of a sweep inherit the variables, and
a run is resumed by typing the setting again or by setting the variable. So it is with a secret that
came from elsewhere, such as a YAML file; that in ``MLFLOW_TRACKING_URI`` stays a reference to it.

Secret are user and password of an address (``scheme://user:password@host``), parameters of it with
such a name as ``password`` or ``token``, and settings with such a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from alseg.system.stores import STORE_VARIABLE, environment_store

MASK = "***"
VARIABLE = "ALSEG_SECRET_"  # begins the names of the environment variables
NO_SECRETS = ("", "null", "true", "false", "???")  # as values of settings named like secrets
_NAME = (
    r"(?:[\w-]*[_-])?(?:password|passwd|pwd|secret|token|api[-_]?key|access[-_]?key|credentials?)"
)
_IN_ADDRESS = re.compile(
    r"""
    (?<=://)                                # user and password, which some drivers
    (?: [^/\s?\#"<>]+                       # want without reserved characters
    |   [^:/\s"<>]*:(?!\d+[/?\#])[^@\s"<>]* # and others take as they are
    )(?=@)
    | (?<=[?&]) (?P<parameter>"""
    + _NAME
    + r""")=[^&\#\s'"<>]+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# also as Hydra's sweeper escapes it for the jobs
_REFERENCE = re.compile(r"\$\\?\{[^{}]*\}|" + re.escape(MASK))
_ESCAPED_REFERENCE = re.compile(rf"(?<!\\)\\(\$\{{oc\.env:(?:{VARIABLE}\w+|{STORE_VARIABLE})\}})")


def without_secrets(text: str) -> str:
    """A text to be shown: the secrets of all addresses in it are masked."""
    return _replaced(text, lambda secret: MASK)


def refer_to_secrets(overrides: Sequence[str]) -> list[str]:
    """Overrides of Hydra's with references for secrets, which go into environment variables."""
    return [_refer(override) for override in overrides]


def _refer(override: str) -> str:
    name, separator, value = override.partition("=")
    if not separator or name.startswith("-"):
        return override
    return name + separator + _with_references(name.lstrip("+~"), value)


def kept_settings(config: DictConfig) -> dict[str, Any]:
    """The settings as a run keeps them: resolved, except for references to secrets.

    A secret that stands in a YAML file goes into an environment variable, as one of the command
    line does, for processes that are started from here.
    """
    kept = _kept(config, OmegaConf.to_container(config, resolve=False), "")
    assert isinstance(kept, dict)
    return kept


def _kept(node: DictConfig | ListConfig, raw: Any, prefix: str) -> Any:
    if not isinstance(raw, dict | list):
        return raw  # a whole node that is missing, None or a reference
    items = raw.items() if isinstance(raw, dict) else enumerate(raw)
    pairs = [(key, _kept_item(node, key, child, f"{prefix}.{key}")) for key, child in items]
    return dict(pairs) if isinstance(raw, dict) else [value for _, value in pairs]


def _kept_item(node: Any, key: Any, raw: Any, name: str) -> Any:
    if isinstance(raw, dict | list):
        return _kept(node[key], raw, name)
    if not isinstance(raw, str):
        return raw
    if "${" not in raw:
        return _with_references(name.lstrip("."), raw)
    try:
        value = node[key]
    except InterpolationResolutionError as error:
        if type(error) is InterpolationResolutionError and _REFERENCE.search(raw):
            return raw  # its variable is not set in this process; whoever reads it gets an error
        raise
    if isinstance(value, DictConfig | ListConfig):
        resolved = OmegaConf.to_container(value, resolve=True)
    else:
        resolved = value
    store = environment_store()
    if store and resolved == store != without_secrets(store):
        return f"${{oc.env:{STORE_VARIABLE}}}"
    return _referring(name, resolved)


def _referring(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _referring(f"{name}.{key}", child) for key, child in value.items()}
    if isinstance(value, list):
        return [_referring(f"{name}.{index}", child) for index, child in enumerate(value)]
    return _with_references(name.lstrip("."), value) if isinstance(value, str) else value


def with_live_references(text: str) -> str:
    """A text of ``literal``'s in which references for secrets are references again."""
    return _ESCAPED_REFERENCE.sub(r"\1", text)


def _is_secret(name: str, value: str) -> bool:
    *_, last = re.split(r"[./@]", re.sub(r"(\.\d+)+$", "", name))  # of a list's items, the list's
    return bool(_SECRET_NAME.fullmatch(last)) and value not in NO_SECRETS


def _with_references(name: str, value: str) -> str:
    """The value of a setting with references for its secrets; sets their variables."""
    variable = VARIABLE + re.sub(r"\W+", "_", name).strip("_").upper()
    if _is_secret(name, value):
        if _REFERENCE.fullmatch(value.strip("'\"")):
            return value
        os.environ[variable] = _unquoted(value)
        return f"${{oc.env:{variable}}}"
    used: list[str] = []

    def refer(secret: str) -> str:
        used.append(variable if not used else f"{variable}_{len(used) + 1}")
        os.environ[used[-1]] = re.sub(r"\\(['\"])", r"\1", secret)
        return f"${{oc.env:{used[-1]}}}"

    return _replaced(value, refer)


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\" + value[0], value[0])
    return value


def _replaced(text: str, replacement: Callable[[str], str]) -> str:
    """A text with the secrets of its addresses replaced, except for references and masks."""

    def replace(found: re.Match[str]) -> str:
        before = f"{found['parameter']}=" if found["parameter"] else ""
        secret = found[0].removeprefix(before)
        return found[0] if _REFERENCE.fullmatch(secret) else before + replacement(secret)

    return _IN_ADDRESS.sub(replace, text)
