"""The only seed rule of the project."""

from __future__ import annotations

import hashlib


def seed_for(base_seed: int, round_number: int, purpose: str, case_id: str | None = None) -> int:
    """Derive the seed of one random draw from what the draw is for.

    Seeds depend on names and never on the order of calls, the strategy, the worker or the device,
    so runs of the same ``base_seed`` are paired across strategies, and two processes draw what one
    would have drawn.

    Args:
        base_seed: the run's ``seed``.
        round_number: 0 for what precedes the first round, then 1, 2, ...
        purpose: what is drawn, such as ``"network"``, ``"batches"`` or ``"mc_dropout"``.
        case_id: the case that the draw belongs to, if it belongs to one.

    Returns:
        An integer in [0, 2**32), valid for Python, NumPy and torch generators.

    Note:
        A hash, not ``base_seed + round_number``: with sums, seed 1 in round 2 would share its
        draws with seed 2 in round 1.
    """
    # repr of the tuple keeps the parts apart: ("a", "bc") and ("ab", "c") must differ.
    key = repr((int(base_seed), int(round_number), purpose, case_id)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
