"""Fetching from a Hugging Face hub: a small one of our own on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models import ModelStore, PullProgress, PullStage
from llmasos.kernel.models.jobs import Job, JobKind
from llmasos.kernel.models.worker import ChildWorker, InlineWorker

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories; what is in `damaged` arrives with a byte changed."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.repositories = repositories
        self.damaged: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            repo = "/".join(path.split("/")[2:4])
            self.send_card(repo, with_body=with_body)
        elif "/resolve/" in path:
            repo, _, rest = path.partition("/resolve/")
            self.send_repo_file(repo, rest.partition("/")[2], with_body=with_body)
        else:
            self.send(404, b"")

    def send_card(self, repo: str, *, with_body: bool) -> None:
        if repo == "gated/model":
            self.send(403, b"{}")
            return
        if repo not in self.server.repositories:
            self.send(404, b"{}")
            return
        siblings = [
            {
                "rfilename": path.name,
                "size": path.stat().st_size,
                "lfs": {
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "size": path.stat().st_size,
                    "pointerSize": 1,
                },
            }
            for path in self.server.repositories[repo].iterdir()
        ]
        card = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self.send(200, json.dumps(card).encode(), **{"Content-Type": "application/json"})

    def send_repo_file(self, repo: str, name: str, *, with_body: bool) -> None:
        data = (self.server.repositories[repo] / name).read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        if name in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        self.send(200, data, with_body=with_body, **headers)

    def send(self, status: int, data: bytes, *, with_body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def hub(llama: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub({"someone/Tiny-Llama": llama, "someone/Tiny-GGUF": tiny_gguf.parent})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class HubInChild(InlineWorker):
    """Fetches in a child process, which reads `HF_ENDPOINT` anew, and converts in this one."""

    def run(self, job: Job, scratch: Path, **callbacks: Any) -> None:
        if job.kind is JobKind.HUB:
            ChildWorker().run(job, scratch, **callbacks)
        else:
            super().run(job, scratch, **callbacks)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store."""
    return ModelStore(tmp_path / "models", worker=HubInChild())


def test_a_repository_becomes_a_model_of_one_commit(store: ModelStore, hub: Hub) -> None:
    seen: list[PullProgress] = []
    info = store.pull("someone/Tiny-Llama", on_progress=seen.append)
    assert (info.name, info.source) == ("tiny-llama", f"hf:someone/Tiny-Llama@{COMMIT}")
    assert info.license == "apache-2.0"
    assert not (store.open("tiny-llama").folder / ".cache").exists()
    assert any(p.stage is PullStage.FETCH and p.total for p in seen)
    assert store.pull("someone/Tiny-Llama") == info


def test_one_gguf_file_of_a_repository_is_converted(
    store: ModelStore, hub: Hub, tiny_gguf: Path
) -> None:
    info = store.pull(f"someone/Tiny-GGUF/{tiny_gguf.name}", name="it")
    assert info.architecture == "LlamaForCausalLM"


def test_a_file_that_arrives_damaged_is_told(store: ModelStore, hub: Hub) -> None:
    hub.damaged.add("model.safetensors")
    with pytest.raises(PullFailed, match=r"model\.safetensors arrived damaged"):
        store.pull("someone/Tiny-Llama")
    assert store.list() == ()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("someone/missing", "has no model at someone/missing|does not exist"),
        ("gated/model", "gated; accept its terms there and set HF_TOKEN"),
        ("someone/Tiny-GGUF", r"name one: someone/Tiny-GGUF/Tiny\.Q4_1\.gguf"),
        ("someone/Tiny-GGUF/x.gguf", r"has no file x\.gguf"),
    ],
)
def test_what_the_hub_does_not_give_is_told(
    store: ModelStore, hub: Hub, source: str, reason: str
) -> None:
    with pytest.raises(PullFailed, match=reason):
        store.pull(source)


def test_a_hub_that_cannot_be_reached_is_told(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullFailed, match=r"hub could not be reached .* check the network"):
        store.pull("someone/model")
