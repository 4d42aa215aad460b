"""The `writer` app: what it can be asked to do. Each is in a module that is loaded when it is wanted.

llmasos run writer brief.md out=article.md
llmasos run writer revise notes.md style=news
llmasos run writer profile learn ours letters/one.md letters/two.md
llmasos run writer measure notes.md style=ours
llmasos run writer evaluate article.md length=600
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.errors import AppError

if TYPE_CHECKING:
    from llmasos.apps.writer.brief import Brief
    from llmasos.apps.writer.editing import Edited
    from llmasos.apps.writer.profiles import Profile

COMMANDS = ("draft", "revise", "profile", "measure", "evaluate")


class SourceFact(BaseModel):
    """A fact as a section's process is handed it."""

    model_config = ConfigDict(extra="forbid")

    text: str
    path: str
    line: int
    last_line: int
    heading: str = ""
    score: float = 0.0
    place: int = 0


class SectionParams(BaseModel):
    """What a forked section is to write."""

    model_config = ConfigDict(extra="forbid")

    number: int
    title: str
    facts: list[SourceFact]


class Params(BaseModel):
    """A draft from a brief (the default), or one of the other commands."""

    model_config = ConfigDict(extra="forbid")

    words: Annotated[
        list[str],
        Field(description="A brief's file; or revise FILE, measure FILE [FILE], evaluate FILE,"
              " profile learn NAME FILE ..., profile show NAME, profile list"),
    ] = Field(default_factory=list)  # fmt: skip
    topic: Annotated[str | None, Field(max_length=300)] = None
    length: Annotated[int | None, Field(ge=60, le=5000, description="Words")] = None
    audience: Annotated[str | None, Field(max_length=200)] = None
    style: Annotated[str | None, Field(description="A built-in style or a learnt one")] = None
    language: Annotated[str | None, Field(pattern=r"^[a-z]{2}$", description="Like en")] = None
    sources: Annotated[str | None, Field(description="Folder of the sources")] = None
    out: Annotated[str | None, Field(description="File to write: .md, .html or .docx")] = None
    at_once: Annotated[int, Field(ge=1, le=32, description="Sections written at a time")] = 13
    seed: int = 0
    wording: Annotated[
        Literal["model", "quote"], Field(description="quote: the sources' own sentences")
    ] = "model"
    accept: Annotated[
        Literal["ask", "all", "none"], Field(description="revise: which suggestions to take")
    ] = "ask"
    patch: Annotated[str | None, Field(description="revise: file for a unified diff")] = None
    in_place: Annotated[bool, Field(description="revise: change the document itself")] = False
    rewordings: Annotated[
        int, Field(ge=0, le=500, description="revise: sentences the model words")
    ] = 40
    profiles: Annotated[str, Field(description="Folder of learnt styles")] = "styles"
    section: Annotated[SectionParams | None, Field(description="Set in forked sections")] = None


@app(
    name="writer",
    summary="Drafts articles from sources, revises documents, learns styles.",
    syscalls=("fs.*", "search", "embed", "document.write"),
)
async def writer(proc: Proc, params: Params) -> None:
    """Do the one thing that the words ask for. Raises `AppError`."""
    if params.section is not None:
        await _section(proc, params, params.section)
        return
    command, *rest = params.words or ["draft"]
    if command not in COMMANDS:
        command, rest = "draft", list(params.words)
    if command == "draft":
        await _draft(proc, params, rest)
    elif command == "profile":
        await _profile(proc, params, rest)
    elif not rest:
        raise AppError(f"Name the file to {command}: `llmasos run writer {command} FILE`.")
    elif command == "revise":
        from llmasos.apps.writer.revising import revise

        await revise(proc, params, rest[0])
    elif command == "measure":
        await _measure(proc, params, rest)
    else:
        from llmasos.apps.writer.evaluation import evaluate

        await evaluate(proc, rest[0], params.length)


async def _section(proc: Proc, params: Params, section: SectionParams) -> None:
    from llmasos.apps.writer.drafting import write_section
    from llmasos.apps.writer.research import Fact

    facts = [Fact(**fact.model_dump()) for fact in section.facts]
    seed = params.seed + 100_000 * section.number
    await write_section(proc, facts, seed, reword=params.wording == "model")


async def _draft(proc: Proc, params: Params, rest: list[str]) -> None:
    """Research, outline, sections, editing, the file."""
    from llmasos.apps.writer import drafting, editing, render, research
    from llmasos.apps.writer.profiles import profile_named

    brief = await _brief(proc, params, rest)
    render.ending_of(brief.out)
    profile = await profile_named(proc, brief.style, params.profiles)
    facts = await research.find_facts(proc, brief, avoid=[brief.out, *rest])
    plans = await research.outline(proc, brief, facts)
    await proc.print(
        f"{len(facts)} facts found; sections: {'; '.join(p.title for p in plans if p.title)}"
    )
    given = params.model_dump(mode="json", exclude={"section", "wording"}, exclude_none=True)
    given["wording"] = params.wording if brief.language == "en" else "quote"
    if given["wording"] == "model":
        await drafting.open_brief(proc.context(), brief, profile)
    sections = await drafting.write_sections(proc, plans, given, params.at_once)
    edited = await editing.edit(proc, brief.topic, sections, profile, brief.length)
    await render.write_article(proc, brief.out, edited.article, brief.language)
    await _tell(proc, brief, edited, profile)


async def _brief(proc: Proc, params: Params, rest: list[str]) -> Brief:
    from llmasos.apps.writer.brief import KEYS, brief_of
    from llmasos.apps.writer.files import read_document

    if len(rest) > 1:
        raise AppError(
            f"One brief at a time; {rest[1]!r} is one too many. Commands: {', '.join(COMMANDS)}."
        )
    text = await read_document(proc, rest[0]) if rest else ""
    path = rest[0] if rest else ""
    given = {key: getattr(params, key) for key in KEYS}
    brief = brief_of(path, text, {"out": "article.md", "sources": ""} | _beside(path, text, given))
    if not brief.sources:
        raise AppError(
            "Name the folder of the sources: sources=FOLDER, or a line `sources: ...` in the brief."
        )
    return brief


def _beside(path: str, text: str, given: dict[str, object]) -> dict[str, object]:
    """The parameters; what a brief says of files is meant from its own folder, unless they say otherwise."""
    import posixpath
    import re

    named = {k: v for k, v in given.items() if v is not None}
    for key in ("sources", "out"):
        found = re.search(rf"^{key}\s*:\s*(\S.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
        if key not in named and found:
            named[key] = posixpath.normpath(
                posixpath.join(posixpath.dirname(path), found[1].strip("\"'"))
            )
    return named


async def _tell(proc: Proc, brief: Brief, edited: Edited, profile: Profile) -> None:
    from llmasos.apps.writer.editing import sources_used
    from llmasos.apps.writer.measures import measure, table
    from llmasos.apps.writer.render import as_markdown

    article = edited.article
    used = ", ".join(f"{path} ({count})" for path, count in sorted(sources_used(article).items()))
    await proc.print(
        f"Wrote {brief.out}: {article.num_words} words of {brief.length} asked, {len(article.parts)} parts,"
        f" {len(article.notes)} citations.\n"
        f"In the model's own words: {edited.num_own} of {edited.num_lines} facts; the others as the sources"
        f" have them.\nEditing: {edited.num_repeated} repeated, {edited.num_trimmed} cut for length,"
        f" {edited.num_spelt} spelt alike.\nSources: {used}"
    )
    if brief.language != "en":
        await proc.print(
            f"The model words English alone; in {brief.language} the sources are quoted."
        )
    if article.num_words < 0.75 * brief.length:
        await proc.print("The sources say no more on this; give more of them for a longer text.")
    await proc.print(table({"article": measure(as_markdown(article))}, profile.wanted))


async def _profile(proc: Proc, params: Params, rest: list[str]) -> None:
    from llmasos.apps.writer.profiles import BUILT_IN, learn, profile_named

    match rest:
        case ["learn", name, _, *_]:
            profile = await learn(proc, name, rest[2:], params.profiles)
            await proc.print(f"Wrote {params.profiles}/{name}.json, {profile.about}.")
        case ["show", name]:
            profile = await profile_named(proc, name, params.profiles)
        case ["list"]:
            for built_in in BUILT_IN.values():
                await proc.print(f"{built_in.name}: {built_in.about}")
            return
        case _:
            raise AppError(
                "Say `profile learn NAME FILE ...`, `profile show NAME` or `profile list`."
            )
    await proc.print(profile.model_dump_json(indent=2))


async def _measure(proc: Proc, params: Params, paths: list[str]) -> None:
    from llmasos.apps.writer.files import read_document
    from llmasos.apps.writer.measures import measure, table
    from llmasos.apps.writer.profiles import profile_named

    columns = {path: measure(await read_document(proc, path)) for path in paths}
    profile = await profile_named(proc, params.style, params.profiles) if params.style else None
    await proc.print(table(columns, profile.wanted if profile else {}))
