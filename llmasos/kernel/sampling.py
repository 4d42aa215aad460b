"""Randomness that depends on nothing but where it is used, and the checks of sampling parameters.

Every random number is a hash of (seed, stream, position): there is no generator to share, to save
or to restore, so a token's number is the same whoever else is in the batch, and a resumed, forked
or replayed process draws it again. Drawing a token with that number is `cores.sample`'s job.

The hash is BLAKE2b (RFC 7693) over a decimal spelling of the arguments, personalised per purpose so
that seeds and uniforms never coincide. It is not meant to keep secrets. Its output is part of the
journal's meaning: change it and old journals no longer replay (`test_sampling` pins values).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from hashlib import blake2b

from llmasos.kernel.abi import Sampling
from llmasos.kernel.errors import InvalidArguments

_UNIFORM = b"llmasos uniform"
_SEED = b"llmasos seed"


def uniform(seed: int, stream: int, position: int) -> float:
    """A number in [0, 1), one of 2**53 equally likely ones; any integers will do.

    The kernel passes a context's id as `stream` and the position of the token to draw, so no two
    draws of a process share a number unless they are the same draw.
    """
    return (_hash(_UNIFORM, f"{seed},{stream},{position}") >> 11) * 2.0**-53


def derive_seed(parent_seed: int, *path: int | str) -> int:
    """The seed of a child (a process, a context) named by `path`, in [0, 2**63).

    Different paths give unrelated seeds, and `1` and `"1"` are different paths. Fits SQLite's INTEGER.
    """
    return _hash(_SEED, json.dumps([parent_seed, *path])) >> 1


def _hash(purpose: bytes, text: str) -> int:
    digest = blake2b(text.encode("ascii"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little")


def check_sampling(sampling: Sampling) -> None:
    """Raise `InvalidArguments` naming every parameter that is out of its range."""
    problems = list(_problems(sampling))
    if problems:
        raise InvalidArguments(f"These sampling parameters cannot be used: {'; '.join(problems)}.")


def _problems(sampling: Sampling) -> Iterator[str]:
    if not (_is_number(sampling.temperature) and sampling.temperature >= 0):
        yield _problem("temperature", sampling.temperature, "a finite number, 0 or more")
    if not (_is_integer(sampling.top_k) and sampling.top_k >= 0):
        yield _problem("top_k", sampling.top_k, "a whole number, 0 (off) or more")
    if not (_is_number(sampling.top_p) and 0 < sampling.top_p <= 1):
        yield _problem("top_p", sampling.top_p, "above 0 and at most 1")
    if not (_is_number(sampling.min_p) and 0 <= sampling.min_p <= 1):
        yield _problem("min_p", sampling.min_p, "from 0 to 1")
    if not (_is_number(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        yield _problem("repetition_penalty", sampling.repetition_penalty, "a finite number above 0")
    if not (sampling.seed is None or _is_integer(sampling.seed)):
        yield _problem("seed", sampling.seed, "a whole number or nothing")


def _problem(name: str, value: object, wanted: str) -> str:
    return f"{name} is {value!r} and must be {wanted}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))
