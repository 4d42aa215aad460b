"""Fetching a model's files from a Hugging Face hub; runs in a worker, since it imports a lot.

Which hub, and who asks, is `huggingface_hub`'s business (`HF_ENDPOINT`, `HF_TOKEN`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.jobs import Event, Job
from llmasos.kernel.models.layout import INDEX, KEPT_FILES
from llmasos.kernel.models.manifest import sha256_of

_TIMEOUT_S: Final = 20.0
_SHARD: Final = re.compile(r"model-\d+-of-\d+\.safetensors")


def fetch(job: Job, emit: Callable[[Event], None]) -> None:
    """Fetch what a model needs of a repository; raises `PullFailed`. An event tells the bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    unreachable: tuple[type[Exception], ...] = (
        *(ConnectionError, TimeoutError),
        *_network_errors(HfHubHTTPError),
    )
    try:
        _fetch(HfApi(), job, emit)
    except HFValidationError as error:
        raise PullFailed(f"{job.source!r} is not a Hugging Face id (owner/name).") from error
    except HfHubHTTPError as error:
        raise _refused(job, getattr(error.response, "status_code", None)) from error
    except unreachable as error:
        raise _refused(job, None) from error
    shutil.rmtree(Path(job.target) / ".cache", ignore_errors=True)


def _network_errors(of_the_hub: type[Exception]) -> tuple[type[Exception], ...]:
    """What the HTTP library under `huggingface_hub`, whichever it is, calls its failures."""
    bases = of_the_hub.__mro__[1:]
    return tuple(
        base for base in bases if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )


def _refused(job: Job, status: int | None) -> PullFailed:
    """The sentence for what the hub answered; None where it did not answer."""
    if status is None:
        return PullFailed(
            f"The Hugging Face hub could not be reached for {job.source}; check the network (or "
            "HF_ENDPOINT) and pull again."
        )
    if status in (401, 403):
        return PullFailed(
            f"The hub refuses {job.source}: it does not exist, or is private or gated; accept its "
            "terms there and set HF_TOKEN."
        )
    if status == 404:
        return PullFailed(f"The hub has no {job.file or 'model'} at {job.source}.")
    return PullFailed(f"The hub answered {status} for {job.source}; pull again later.")


def _fetch(api: Any, job: Job, emit: Callable[[Event], None]) -> None:
    card = api.model_info(
        job.source, revision=job.revision or None, files_metadata=True, timeout=_TIMEOUT_S
    )
    files = {entry.rfilename: entry for entry in card.siblings}
    wanted = _wanted(files, job)
    total = sum(files[name].size or 0 for name in wanted)
    emit(Event(0, total, job.source, revision=card.sha or ""))
    for name in wanted:
        path = api.hf_hub_download(
            job.source, name, revision=card.sha, local_dir=job.target, etag_timeout=_TIMEOUT_S
        )
        _verify(Path(path), files[name])


def _wanted(files: Mapping[str, Any], job: Job) -> list[str]:
    if job.file:
        if job.file not in files:
            raise PullFailed(f"{job.source} has no file {job.file}.")
        return [job.file]
    return [name for name in KEPT_FILES if name in files] + _weights(files, job)


def _weights(files: Mapping[str, Any], job: Job) -> list[str]:
    if INDEX in files:
        return sorted(name for name in files if _SHARD.fullmatch(name))
    found = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if "model.safetensors" in found:
        return ["model.safetensors"]
    if len(found) == 1:
        return found
    if ggufs := sorted(name for name in files if name.endswith(".gguf")):
        raise PullFailed(f"{job.source} holds GGUF files; name one: {job.source}/{ggufs[0]}.")
    raise PullFailed(f"{job.source} has no weights as safetensors.")


def _verify(path: Path, entry: Any) -> None:
    lfs = getattr(entry, "lfs", None)
    expected = getattr(lfs, "sha256", None)
    if expected and sha256_of(path) != expected:
        raise PullFailed(f"{entry.rfilename} arrived damaged; pull again.")
