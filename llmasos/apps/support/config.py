"""`support.yaml`: what a customer-service desk is made of."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from llmasos.apps.support.flows import Flow, Strict, problems_of, same_examples
from llmasos.kernel.errors import AppError

FILE = "support.yaml"


class Orders(Strict):
    """Where the order table is, and whose a row is."""

    file: str
    table: str
    customer: str = "customer_id"


class Config(Strict):
    """The whole file."""

    name: str
    languages: Annotated[list[str], Field(min_length=1)] = Field(default=["en"])
    """The first is what files are in that do not say otherwise."""
    faq: list[str] = Field(default_factory=list)
    documents: list[str] = Field(default_factory=list)
    examples: str | None = None
    """JSONL of `text` and `answer` (an entry's id), `flow` (its name) or neither (nothing here fits)."""
    orders: Orders | None = None
    flows: dict[str, Flow] = Field(default_factory=dict)


def parse_config(path: str, text: str) -> Config:
    """The configuration; raises `AppError` with every problem that it has."""
    try:
        config = Config.model_validate(yaml.safe_load(text) or {})
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise AppError(f"{path}, line {line}: this is no YAML ({error.problem}).") from error
    except yaml.YAMLError as error:
        raise AppError(f"{path} is no YAML.") from error
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise AppError(f"{path}: {told}.") from error
    problems = [each for name, flow in config.flows.items() for each in problems_of(name, flow)]
    problems += same_examples(config.flows)
    if config.flows and config.orders is None:
        problems.append("flows need an order table; name it under `orders`")
    if problems:
        raise AppError(f"{path}: {'; '.join(problems)}.")
    return config
