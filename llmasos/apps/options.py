"""How a generation is asked for: the keyword arguments that every generating method of the SDK takes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from llmasos.kernel.abi import FinishReason, Generation, Grammar, GrammarKind, Sampling
from llmasos.kernel.errors import Failed

Model = TypeVar("Model", bound=BaseModel)


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate`, `stream`, `ask`; what is left out has the kernel's default.

    `temperature` and `seed` are short for a `Sampling` that sets only those.
    """

    max_tokens: int
    sampling: Sampling
    temperature: float
    seed: int | None
    stop: Sequence[str]
    grammar: Grammar
    logprobs: int
    ignore_eos: bool


def to_arguments(options: GenerateOptions) -> dict[str, Any]:
    """The arguments of `llm.generate`, without `context`."""
    arguments: dict[str, Any] = dict(options)
    temperature = arguments.pop("temperature", 0.0)
    seed = arguments.pop("seed", None)
    arguments.setdefault("sampling", Sampling(temperature=temperature, seed=seed))
    if "stop" in arguments:
        arguments["stop"] = list(arguments["stop"])
    return arguments


def json_grammar(schema: dict[str, Any]) -> Grammar:
    """A grammar that allows the JSON texts that fit a schema."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def choice_grammar(texts: Sequence[str]) -> Grammar:
    """A grammar that allows exactly these texts."""
    return Grammar(GrammarKind.CHOICE, json.dumps(list(texts)))


def regex_grammar(expression: str) -> Grammar:
    """A grammar that allows what a regular expression matches from its beginning to its end."""
    return Grammar(GrammarKind.REGEX, expression)


def quote(text: str) -> str:
    """A text as a regular expression that matches only it, in the dialect of `regex_grammar`."""
    return re.sub(r"([\\.^$|?*+()\[\]{}/&~#-])", r"\\\1", text)


def parse_reply(generation: Generation, model: type[Model]) -> Model:
    """A generation under `json_grammar` as the pydantic model it was made for.

    Raises `Failed` when it was cut off, or where a validator asks more than a schema can say.
    """
    if generation.finish is not FinishReason.STOP:
        raise Failed(
            f"The reply ended early ({generation.finish}) and is no whole {model.__name__}; "
            "raise max_tokens."
        )
    try:
        return model.model_validate_json(generation.text)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise Failed(f"The reply is no valid {model.__name__}: {problems}.") from error
