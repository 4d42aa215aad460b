"""`Desk`: a customer-service desk, loaded from its folder by syscalls, and what is fitted on its texts."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.apps.files import read_whole
from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.support.config import FILE, Config, Orders, parse_config
from llmasos.apps.support.knowledge import Entry, parse_document, parse_faq, read_jsonl
from llmasos.apps.support.language import Detector
from llmasos.apps.support.matching import NOTHING, Form, Match, Matcher
from llmasos.apps.support.moods import Mood, fit_moods
from llmasos.apps.support.slots import Meaning
from llmasos.apps.vectors import Logistic, Vectors, embed
from llmasos.kernel.errors import AppError

HUMAN, THANKS, HELLO = "desk:human", "desk:thanks", "desk:hello"
_OWN_EXAMPLES = {
    HUMAN: (
        "I want to talk to a human",
        "Can I speak to a real person?",
        "Connect me with an agent please",
        "Let me talk to your manager",
        "Is there somebody I can call?",
    ),
    THANKS: ("Thank you", "Thanks, that helps", "Great, that is all", "Bye", "No, nothing else"),
    HELLO: ("Hello", "Good morning", "Hi there"),
}


@dataclass(frozen=True, slots=True)
class Base:
    """What the desk's files say, understood."""

    config: Config
    entries: tuple[Entry, ...]
    forms: tuple[Form, ...]

    def forms_for(self, model: str) -> tuple[Form, ...]:
        """Those that an embedding model understands: MiniLM was made for English."""
        if model != "minilm" or self.config.languages[0] != "en":
            return self.forms
        return tuple(form for form in self.forms if form.language == "en")


async def load_base(proc: Proc, folder: str) -> Base:
    """Read and understand all the files that `support.yaml` names. Raises `AppError`."""
    config_path = posixpath.join(folder, FILE) if folder != "." else FILE
    config_text = await read_whole(proc, config_path)
    config = parse_config(config_path, config_text)
    names = [*config.faq, *config.documents, *filter(None, [config.examples])]
    paths = [posixpath.normpath(posixpath.join(folder, name)) for name in names]
    texts = tuple([(path, await read_whole(proc, path)) for path in paths])
    return _understood(config_path, config_text, texts)


@functools.lru_cache(maxsize=8)
def _understood(path: str, config_text: str, texts: tuple[tuple[str, str], ...]) -> Base:
    """A function of the texts alone, so many customers of one base share it."""
    config = parse_config(path, config_text)
    own = config.languages[0]
    entries: list[Entry] = []
    for file, text in texts[: len(config.faq)]:
        entries += parse_faq(file, text, own)
    for file, text in texts[len(config.faq) : len(config.faq) + len(config.documents)]:
        entries += parse_document(file, text, own)
    if not entries and not config.flows:
        raise AppError(f"{path}: the base is empty; name files under faq or documents.")
    forms = list(_forms_of(config, entries))
    if config.examples:
        forms += _examples(config, entries, *texts[-1])
    return Base(config, tuple(entries), tuple(forms))


def _forms_of(config: Config, entries: Sequence[Entry]) -> list[Form]:
    forms = []
    own, detect = config.languages[0], Detector(config.languages).detect
    for entry in entries:
        label = f"answer:{entry.id}"
        language = entry.language
        forms += [Form(label, text, language=language) for text in (entry.question, *entry.also)]
        passage = f"{entry.question} {entry.answer}"
        forms.append(Form(label, passage, is_passage=True, language=language))
    for name, flow in config.flows.items():
        forms += [Form(f"flow:{name}", t, language=detect(t, own)) for t in flow.examples]
    for label, texts in _OWN_EXAMPLES.items():
        forms += [Form(label, text) for text in texts]
    return forms


def _examples(config: Config, entries: Sequence[Entry], path: str, text: str) -> list[Form]:
    """The user's examples; raises `AppError` for one that names what is not there."""
    own, detect = config.languages[0], Detector(config.languages).detect
    ids = {entry.id for entry in entries}
    forms = []
    for line, example in read_jsonl(path, text):
        answer, flow, said = (example.get(key) for key in ("answer", "flow", "text"))
        if not isinstance(said, str) or not said.strip():
            raise AppError(f"{path}, line {line}: an example needs a text.")
        if answer is not None and answer not in ids:
            raise AppError(f"{path}, line {line}: there is no entry {answer!r}.")
        if flow is not None and flow not in config.flows:
            raise AppError(f"{path}, line {line}: there is no flow {flow!r}.")
        label = f"answer:{answer}" if answer else f"flow:{flow}" if flow else NOTHING
        forms.append(Form(label, said, language=detect(said, own), is_example=True))
    return forms


class Desk:
    """A loaded desk. One a process."""

    def __init__(
        self, base: Base, matchers: dict[str, Matcher], moods: dict[str, Logistic]
    ) -> None:
        self.config = base.config
        self.entries = base.entries
        self.matchers = matchers
        """By embedding model: `minilm` for the desk's first language, `e5` for others."""
        self._moods = moods
        self.detector = Detector(base.config.languages)
        self.orders: Orders | None = base.config.orders

    @property
    def language(self) -> str:
        """The first one."""
        return self.config.languages[0]

    @classmethod
    async def load(cls, proc: Proc, folder: str) -> Desk:
        """Read, embed and fit. Raises `AppError`, and `Failed` where there is no embedding model."""
        base = await load_base(proc, folder)
        matchers: dict[str, Matcher] = {}
        moods: dict[str, Logistic] = {}
        for model in await _models(proc, base.config):
            forms = base.forms_for(model)
            vectors = await _form_vectors(proc, forms, model)
            matchers[model] = _fitted(forms, vectors.tobytes(), vectors.shape[1])
            moods[model] = await fit_moods(proc, model)
        return cls(base, matchers, moods)

    def model_for(self, language: str) -> str:
        """Which embedding model understands a language."""
        if language == self.language == "en" and "minilm" in self.matchers:
            return "minilm"
        return "e5" if "e5" in self.matchers else next(iter(self.matchers))

    async def understand(self, proc: Proc, text: str, language: str) -> tuple[list[Match], Mood]:
        """What a text is about, best first, and how its writer feels."""
        model = self.model_for(language)
        vector = (await embed(proc, [text], model=model, query=model == "e5"))[0]
        own = vector if model != "e5" else (await embed(proc, [text], model=model))[0]
        upset = float(self._moods[model].probabilities(own[None])[0])
        return self.matchers[model].rank(text, vector), Mood(upset)

    def meaning(self, language: str) -> Meaning:
        """What choices are compared by in a language."""
        model = self.model_for(language)
        return Meaning(model, self.matchers[model])

    def threshold(self, language: str) -> float:
        """From which score on a match is believed."""
        return self.matchers[self.model_for(language)].threshold

    def entry(self, entry_id: str, language: str) -> Entry:
        """An entry in a language, or in the first it is in."""
        all_of_it = [entry for entry in self.entries if entry.id == entry_id]
        return next((entry for entry in all_of_it if entry.language == language), all_of_it[0])


async def _form_vectors(proc: Proc, forms: Sequence[Form], model: str) -> Vectors:
    """A row for each form: passages as passages, the rest as the questions that they are."""
    import numpy as np

    kinds = np.array([form.is_passage for form in forms])
    texts = [form.text for form in forms]
    asked = await embed(proc, texts, model=model, query=model == "e5")
    if model != "e5":
        return asked
    passages = await embed(proc, texts, model=model)
    return np.where(kinds[:, None], passages, asked)


async def _models(proc: Proc, config: Config) -> list[str]:
    """MiniLM knows English; the multilingual model is for the rest, where it is installed."""
    models = ["minilm"]
    if config.languages != ["en"]:
        try:
            await proc.call("embed", texts=["hello"], model="e5")
        except SyscallError:
            return models
        models.append("e5")
    return models if config.languages[0] == "en" else models[-1:]


@functools.lru_cache(maxsize=8)
def _fitted(forms: tuple[Form, ...], rows: bytes, width: int) -> Matcher:
    """A function of texts and vectors alone: fitted once, however many processes ask."""
    import numpy as np

    vectors: Vectors = np.frombuffer(rows, np.float32).reshape(len(forms), width)
    return Matcher(forms, vectors)
