"""Who works on which case: claims with a time limit, in a file of the request folder.

All is read and written under a lock, so that several pages, and several servers on one run folder,
agree. A claim is held by an opened page, not by a name: two tabs of one person hold different ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from alseg.core.errors import AlsegError, DataError
from alseg.run.folder import CLAIMS_FILE, CLAIMS_LOCK, DRAFTS_FOLDER
from alseg.system.files import locked, read_json, write_json


class TakenError(AlsegError):
    """Somebody else works on the case, or has handed it in."""


@dataclass(frozen=True)
class Claim:
    """What is known of the work on a case.

    Attributes:
        annotator: who works on it, or was the last to do so.
        holder: the opened page that holds the claim; empty if none does.
        until: when the claim ends, in seconds since 1970.
        seconds: that the case has been in front, of all who have worked on it.
    """

    annotator: str
    holder: str
    until: float
    seconds: float

    @property
    def is_held(self) -> bool:
        """Whether a page holds the case now."""
        return bool(self.holder) and time.time() < self.until


class Claims:
    """The claims of one request.

    Args:
        folder: of the request.
        limit_seconds: how long a claim lasts after the last sign of life.
    """

    def __init__(self, folder: Path, limit_seconds: float) -> None:
        self.folder = folder / DRAFTS_FOLDER
        self.limit_seconds = limit_seconds

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold all claims of the request in the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / CLAIMS_LOCK):
            yield

    def read(self) -> dict[str, Claim]:
        """The claim on each case, of which somebody has worked on it.

        Raises:
            DataError: if the file is damaged.
        """
        path = self.folder / CLAIMS_FILE
        if not path.is_file():
            return {}
        content = read_json(path)
        try:
            return {case_id: Claim(**fields) for case_id, fields in content["cases"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged, delete it: {error!r}") from error

    def take(self, case_id: str, annotator: str, holder: str, *, take_over: bool = False) -> Claim:
        """Claim a case, and give back whatever else the page holds; to be called when locked.

        Args:
            case_id: the case.
            annotator: who wants it.
            holder: the page.
            take_over: take it from another page of the same annotator.

        Raises:
            TakenError: if somebody else holds it.
        """
        claims = self.read()
        claim = claims.get(case_id, Claim(annotator, "", 0.0, 0.0))
        if claim.is_held and claim.holder != holder:
            own = claim.annotator == annotator
            if not (own and take_over):
                raise TakenError(_taken(case_id, claim, own=own))
        taken = Claim(annotator, holder, time.time() + self.limit_seconds, claim.seconds)
        self._write(_without(claims, holder) | {case_id: taken})
        return taken

    def keep(self, case_id: str, holder: str, seconds: float = 0.0) -> Claim:
        """Renew a claim, and count the time of the work; to be called when locked.

        A claim that has ended and that nobody else has taken is renewed as well.

        Args:
            case_id: the case.
            holder: the page.
            seconds: for which the case has been in front since the last time, as the page says;
                no more of them count than a claim lasts.

        Raises:
            TakenError: if the page does not hold the case any more.
        """
        seconds = min(max(seconds, 0.0), self.limit_seconds)
        claims = self.read()
        claim = claims.get(case_id)
        if claim is None or claim.holder != holder:
            raise TakenError(
                f"{case_id} is no longer yours"
                + (f": {claim.annotator} has opened it" if claim and claim.holder else "")
                + "; what is on this page has not been saved since"
            )
        until = time.time() + self.limit_seconds
        kept = replace(claim, until=until, seconds=claim.seconds + seconds)
        self._write(claims | {case_id: kept})
        return kept

    def give_back(self, holder: str) -> None:
        """Give back all that a page holds; to be called when locked."""
        claims = self.read()
        if any(claim.holder == holder for claim in claims.values()):
            self._write(_without(claims, holder))

    def _write(self, claims: Mapping[str, Claim]) -> None:
        content = {case_id: asdict(claim) for case_id, claim in claims.items()}
        write_json(self.folder / CLAIMS_FILE, {"cases": content})


def _without(claims: Mapping[str, Claim], holder: str) -> dict[str, Claim]:
    return {i: replace(c, holder="") if c.holder == holder else c for i, c in claims.items()}


def _taken(case_id: str, claim: Claim, *, own: bool) -> str:
    until = time.strftime("%H:%M", time.localtime(claim.until))
    if own:
        return f"{case_id} is open on another page of yours"
    return f"{claim.annotator} works on {case_id}, at least until {until}"
