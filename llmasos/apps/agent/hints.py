"""What small models are told of the tools they know: a line on each, and requests that call for it.

Data only. A small model cannot tell from a description when a tool is wanted, but it can tell which list
of requests a new one would stand in (`classify`). The requests are about other things than the
benchmark's, whose figures would mean nothing otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmasos.kernel.abi import SyscallInfo


@dataclass(frozen=True, slots=True)
class Hint:
    """One kind of request."""

    description: str
    examples: tuple[str, ...]
    covered_by: str = ""
    """A tool that does the same more simply, or whose requests a small model takes for this one's:
    where that one is offered, this one is not."""
    verbs: str = ""
    """For tools that change something: a request must have one of these words, or it does not ask for
    it. Being likely is not enough to write over somebody's file."""


ANSWER = "answer"
"""The choice of no tool."""

HINTS: Mapping[str, Hint] = {
    "fs.read": Hint(
        "Read a file and answer from what it says.",
        (
            "Show me report.txt",
            "Open the file diary.md",
            "What does letter.txt say?",
            "Read plan.md and tell me who is in charge",
            "Summarise the file projects/bridge.md",
            "Print the contents of config.toml",
            "How much did the car cost according to costs.csv?",
            "Tell me what is written in the shopping list",
            "What is in my diary file?",
            "Take a look at the essay on whales",
            "cat story.txt",
            "When does the train in trips/paris.md arrive?",
        ),
    ),
    "fs.list": Hint(
        "List the files and folders that exist in a folder.",
        (
            "List the files in this folder",
            "What files are there?",
            "Show the folder photos",
            "ls",
            "What is in the directory src?",
            "Which files do I have?",
            "How many documents are in the folder?",
            "Show me everything in the music directory",
            "dir",
            "Give me a list of the files here",
            "What is inside the letters folder?",
            "List the current directory",
        ),
    ),
    "fs.glob": Hint("Find files by name.", ("Find all files called *.md",), covered_by="fs.list"),
    "fs.grep": Hint(
        "Find lines with certain words in files.",
        ("Find the lines with the word error", "grep for warning", "Which lines mention Peter?"),
        covered_by="search",
    ),
    "fs.write": Hint(
        "Write a text to a file.",
        (
            "Write hello to greeting.txt",
            "Save this as draft.md",
            "Create a file names.txt with the words one and two",
            "Store the answer in result.txt",
            "Make a new file called ideas.md",
            "Put the text in the file log.txt",
            "Save a copy to backup.txt",
            "Write a file with my address",
        ),
        verbs="write save create store put make record note",
    ),
    "fs.append": Hint(
        "Add lines to the end of a file.",
        (
            "Add milk to shopping.txt",
            "Append this line to log.txt",
            "Add an entry to my diary.md",
            "Put one more line at the end of names.txt",
        ),
        verbs="add append put",
    ),
    "fs.remove": Hint(
        "Delete a file or an empty folder.",
        ("Delete old.txt", "Remove the file draft.md", "Throw away backup.txt", "rm log.txt"),
        verbs="delete remove rm erase throw",
    ),
    "fs.move": Hint(
        "Move or rename a file.",
        (
            "Rename draft.md to final.md",
            "Move photo.jpg to the folder pictures",
            "mv a.txt b.txt",
            "Change the name of old.txt to new.txt",
        ),
        verbs="move rename mv change",
    ),
    "search": Hint(
        "Search all the files for words or a topic.",
        (
            "Search for whales",
            "Find the word budget in my files",
            "Which file mentions the bridge?",
            "Look for notes about the holiday",
            "Where is the contract mentioned?",
            "Do my documents say anything about bees?",
            "grep for error",
            "Find all mentions of Peter",
            "Where did I write about the piano?",
            "Is there anything about taxes in my notes?",
            "Search my documents for the word invoice",
            "Find files that talk about the school",
        ),
    ),
    "fs.history": Hint(
        "List the earlier versions of a file.",
        ("Show the history of plan.md", "Which earlier versions of notes.txt are there?"),
        covered_by="fs.list",
    ),
    "fs.restore": Hint(
        "Bring back an earlier version of a file.",
        ("Restore plan.md", "Bring back the old version of notes.txt", "Undo the change to a.txt"),
        covered_by="fs.write",
        verbs="restore bring undo revert recover",
    ),
    "memory.remember": Hint(
        "Remember a fact for later.",
        (
            "Remember that the spare key is under the pot",
            "Keep in mind that I am allergic to nuts",
            "Memorise that my dentist is called Ruiz",
        ),
        verbs="remember memorise memorize keep",
    ),
    "memory.recall": Hint(
        "Find what was remembered about something.",
        ("What did I tell you to remember about the key?", "Do you remember my dentist's name?"),
        covered_by="search",
    ),
    "memory.list": Hint(
        "List what is remembered.", ("List your memories",), covered_by="memory.remember"
    ),
    "memory.forget": Hint(
        "Forget one memory for good.",
        ("Forget memory 3",),
        covered_by="memory.remember",
        verbs="forget",
    ),
    "web.fetch": Hint(
        "Read a web page.",
        ("Fetch https://example.org/news", "Open the page www.example.com/prices"),
        covered_by="search",
        verbs="fetch http https www visit download",
    ),
    "exec.python": Hint(
        "Run a Python program.",
        ("Run this Python program: print(3)",),
        covered_by="calc",
        verbs="run execute python",
    ),
    "exec.shell": Hint(
        "Run shell commands.",
        ("Run the command uname -a",),
        covered_by="calc",
        verbs="run execute command",
    ),
    "calc": Hint(
        "Calculate with numbers.",
        (
            "What is 12 * 7?",
            "Calculate 340 / 5",
            "How much is 25% of 80?",
            "Add 14, 19 and 33",
            "3.2 + 4.1",
            "What is the square root of 81?",
            "Multiply 19 by 21",
            "A ticket costs 9 euros. What do 5 tickets cost?",
            "What is 100 minus 37?",
            "(2 + 3) * 4",
            "subtract 48 from 120",
            "What is the sum of 5, 6 and 7?",
        ),
    ),
    "time.now": Hint(
        "Tell the current time and date.",
        (
            "What time is it?",
            "What is the date today?",
            "Which day is it?",
            "Tell me the time",
            "What year is this?",
            "Is it Friday today?",
            "What's the current date and time?",
            "How late is it now?",
            "Which month is it?",
            "Is it already evening?",
            "what is today's date",
            "What day of the week is it?",
            "What time is it in London?",
            "What is the local time in Cairo right now?",
        ),
    ),
}

ANSWERING: tuple[Hint, ...] = (
    Hint(
        "General knowledge: no tool is needed.",
        (
            "What is the capital of Italy?",
            "Who discovered penicillin?",
            "Explain how a rainbow forms",
            "How do I bake bread?",
            "What does democracy mean?",
            "Tell me about elephants",
            "Why do cats purr?",
            "How many bones does a human have?",
            "Name two rivers in Africa",
            "In which country is Madrid?",
        ),
    ),
    Hint(
        "Small talk: no tool is needed.",
        (
            "Hello!",
            "Hi",
            "Thank you very much",
            "Thanks",
            "How are you doing?",
            "What can you do?",
            "Who made you?",
            "ok",
            "That is great",
            "Good evening",
            "bye",
            "Can you help me?",
        ),
    ),
    Hint(
        "Writing and ideas: no tool is needed.",
        (
            "Write a poem about winter",
            "Tell me a riddle",
            "Give me an idea for a birthday present",
            "Translate 'thank you' into French",
            "Write a short letter to my landlord",
            "Invent a name for a bakery",
            "Tell me a story about a robot",
            "What should I cook tonight?",
            "Give me some advice on saving money",
            "Make this sentence more polite: give me the book",
        ),
    ),
)
"""Requests to answer without a tool: three lists, for one list of everything would fit nothing well."""

SHOW = "show"
ASK = "ask"
SUM_UP = "sum up"

READING: Mapping[str, Hint] = {
    SHOW: Hint(
        "Show the text of the file, all of it, as it is.",
        (
            "Show me report.txt",
            "Open the file diary.md",
            "Print the contents of config.toml",
            "cat story.txt",
            "What does letter.txt say?",
            "Display the shopping list",
            "What is in my diary file?",
            "Read me the essay on whales",
        ),
    ),
    ASK: Hint(
        "Answer a question about something in the file.",
        (
            "When does the train in trips/paris.md arrive?",
            "How much did the car cost according to costs.csv?",
            "Read plan.md and tell me who is in charge",
            "Look in phones.txt and tell me the number of the doctor",
            "Where does the story in fox.txt take place?",
            "Who wrote letter.txt?",
            "What did they agree on in minutes.md?",
        ),
    ),
    SUM_UP: Hint(
        "Tell in a few words what the file is about.",
        (
            "Summarise the file projects/bridge.md",
            "What is report.txt about?",
            "Give me a summary of the essay on whales",
            "Sum up letter.txt in one sentence",
            "Tell me briefly what plan.md says",
            "Explain the main points of paper.txt",
            "Give me the gist of minutes.md",
            "What is the topic of talk.md?",
        ),
    ),
}
"""Three things people mean by a request to read a file."""


def hint_for(tool: SyscallInfo) -> Hint:
    """What is known of a tool; for one never heard of, its own description serves as the example."""
    if tool.name in HINTS:
        return HINTS[tool.name]
    summary = tool.description.strip().partition("\n")[0] or tool.name
    return Hint(summary, (summary.rstrip("."),))


def offered(tools: list[SyscallInfo]) -> list[SyscallInfo]:
    """The tools to choose among: without those that a simpler one covers."""
    names = {tool.name for tool in tools}
    return [tool for tool in tools if hint_for(tool).covered_by not in names]
