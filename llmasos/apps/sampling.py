"""The parameters for generating that the built-in apps share."""

from __future__ import annotations

from typing import Annotated, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from llmasos.kernel.abi import Sampling

SYSTEM = (
    "You are a helpful assistant. Answer briefly and to the point, in the language of the question."
)
"""What chat and agent tell the model unless told otherwise. Small models need to be told: the default one
has 12 of 12 simple questions right with it, 8 without (chosen among ten such lines on those twelve)."""


class _Options(TypedDict):
    max_tokens: int
    sampling: Sampling


class SamplingParams(BaseModel):
    """How to draw tokens, and how many at most."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    temperature: Annotated[float, Field(ge=0, description="0 always takes the likeliest")] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int | None, Field(description="Default: the process's own")] = None

    @property
    def sampling(self) -> Sampling:
        """As the kernel wants it."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    def generate_options(self) -> _Options:
        """Keyword arguments for the SDK's generating methods."""
        return {"max_tokens": self.max_tokens, "sampling": self.sampling}
