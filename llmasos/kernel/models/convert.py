"""The heavy part of a pull: imports transformers and torch, so it runs in a worker.

Weights of a quantised GGUF file are stored as float32, because a dequantised value (a 4-bit number
times one half-precision factor plus another) does not fit bfloat16, and tests compare cores to the
last digit; a core that wants bfloat16 rounds while loading, which costs milliseconds. Above a
billion parameters the disk counts for more than those digits, and bfloat16 is stored. Weights that
are not quantised keep their type.

As a program: one job as JSON in the arguments; a JSON line per event, or the error, on stdout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import LlmosError, PullFailed
from llmasos.kernel.models import hub
from llmasos.kernel.models.gguf_vocabulary import set_pre_tokenizer
from llmasos.kernel.models.jobs import Event, Job, JobKind, decode_job
from llmasos.kernel.models.layout import kind_of
from llmasos.kernel.models.records import ModelKind
from llmasos.kernel.models.tokenizer import ModelTokenizer, parse_backend
from llmasos.kernel.models.tokenizer_files import read_json
from llmasos.kernel.models.weights import GgufFacts, read_gguf_facts

FULL_PRECISION_PARAMETERS: Final = 1_000_000_000
"""Up to here dequantised weights are stored as float32."""

_LIBRARY_ERRORS: Final = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError),
    *(ImportError, RuntimeError, OSError),
)
"""What transformers raises for a file that it does not understand."""

Emit = Callable[[Event], None]


def perform(job: Job, emit: Emit) -> None:
    """Do a job; raises `PullFailed` with a sentence for people."""
    try:
        _JOBS[job.kind](job, emit)
    except LlmosError as error:
        raise PullFailed(str(error)) from error
    except _LIBRARY_ERRORS as error:
        raise PullFailed(_explain(job, error)) from error


def _explain(job: Job, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.strerror}: {error.filename}."
    first_line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    reason = first_line or type(error).__name__
    return f"{job.label} cannot be made into a model: {reason}."


def _convert_gguf(job: Job, emit: Emit) -> None:
    source, target = Path(job.source), Path(job.target)
    facts = read_gguf_facts(source)
    steps = _Steps(emit, total=4)
    steps.begin("reading the vocabulary")
    notes = _save_gguf_tokenizer(source, target, facts)
    steps.begin("reading the weights", notes)
    model = _load_gguf(source, facts)
    steps.begin("writing safetensors")
    _save(model, target)
    steps.begin("loading what was written")
    _check(target)


class _Steps:
    def __init__(self, emit: Emit, *, total: int) -> None:
        self._emit = emit
        self._total = total
        self._begun = 0

    def begin(self, detail: str, notes: tuple[str, ...] = ()) -> None:
        self._emit(Event(self._begun, self._total, detail, notes))
        self._begun += 1


def _save_gguf_tokenizer(source: Path, target: Path, facts: GgufFacts) -> tuple[str, ...]:
    """Write the tokenizer; the sentences its user should read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(target)
    known = set_pre_tokenizer(target / "tokenizer.json", facts.pre_tokenizer)
    _compact(target / "tokenizer.json")
    if known:
        return ()
    return (
        f"Its way of splitting text ({facts.pre_tokenizer}) is not known here; GPT-2's is used, so "
        "a few tokens may differ from those it was trained on.",
    )


def _compact(file: Path) -> None:
    """A third of the size, and faster to load."""
    content = json.loads(file.read_text(encoding="utf-8"))
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    file.write_text(text, encoding="utf-8")


def _load_gguf(source: Path, facts: GgufFacts) -> Any:
    import torch
    import transformers

    is_small = facts.parameters <= FULL_PRECISION_PARAMETERS
    dtype = facts.dtype or ("float32" if is_small else "bfloat16")
    options: dict[str, Any] = {}
    if facts.dtype is None and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=getattr(torch, dtype),
        trust_remote_code=False,
        **options,
    )


def _save(model: Any, target: Path) -> None:
    """transformers refuses to save a model that it read from GGUF, so this does it: weights under
    their own names, one of each that are tied, and a configuration that names no GGUF file."""
    from safetensors.torch import save_file

    kept = {}
    storages = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in storages:
            storages.add(tensor.data_ptr())
            kept[name] = tensor.contiguous()
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    config["architectures"] = [type(model).__name__]
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(target)


def _complete_folder(job: Job, emit: Emit) -> None:
    target = Path(job.target)
    steps = _Steps(emit, total=2)
    steps.begin("completing the tokenizer")
    _complete_tokenizer(target)
    steps.begin("loading the model")
    _check(target)


def _complete_tokenizer(folder: Path) -> None:
    """See that there is a `tokenizer.json` with every token that the settings add to it."""
    from tokenizers import AddedToken

    file = folder / "tokenizer.json"
    if not file.exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
    backend = parse_backend(file.read_text(encoding="utf-8"), folder.name)
    listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    missing = sorted(int(i) for i in listed if backend.id_to_token(int(i)) is None)
    for token_id in missing:
        if token_id == backend.get_vocab_size():
            backend.add_tokens([AddedToken(**_added_token(listed[str(token_id)]))])
    if missing:
        backend.save(str(file))


def _added_token(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: fields[name] for name in names if name in fields}


def _check(folder: Path) -> None:
    """Load the model and its tokenizer as a core will; raises `PullFailed`."""
    import transformers

    kind = kind_of(folder, read_json(folder / "config.json"))
    is_decoder = kind is ModelKind.DECODER
    loader: Any = transformers.AutoModelForCausalLM if is_decoder else transformers.AutoModel
    _, report = loader.from_pretrained(
        folder,
        dtype="auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    lost = sorted(name for name in report["missing_keys"] if is_decoder or "pooler" not in name)
    if lost:
        raise PullFailed(f"The weights do not fit the configuration: {lost[0]} is missing.")
    if misfits := sorted(str(entry[0]) for entry in report["mismatched_keys"]):
        raise PullFailed(f"The weights do not fit the configuration: {misfits[0]} in its shape.")
    _check_tokenizer(ModelTokenizer.load(folder))


def _check_tokenizer(tokenizer: ModelTokenizer) -> None:
    """Use it once; asking for the ends of a text also parses the chat template."""
    if not tokenizer.encode("a") or tokenizer.vocab_size <= max(tokenizer.eos_ids, default=0):
        raise PullFailed("The tokenizer does not fit the model.")


_JOBS: Final[dict[JobKind, Callable[[Job, Emit], None]]] = {
    JobKind.GGUF: _convert_gguf,
    JobKind.FOLDER: _complete_folder,
    JobKind.HUB: hub.fetch,
}


def main() -> int:
    """Do the job in the arguments."""
    job = decode_job(json.loads(sys.argv[1]))
    try:
        perform(job, lambda event: _say({"event": event.as_dict()}))
    except PullFailed as error:
        _say({"error": str(error)})
        return 1
    return 0


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
