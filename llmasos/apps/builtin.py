"""The apps that come with LLMasOS, by name."""

from __future__ import annotations

from difflib import get_close_matches

from llmasos.apps.agent.app import agent
from llmasos.apps.app import App
from llmasos.apps.call import call
from llmasos.apps.chat import chat
from llmasos.apps.complete import complete
from llmasos.apps.recommender.app import recommender
from llmasos.apps.support.app import support
from llmasos.kernel.errors import NoSuchApp

_APPS = (agent, call, chat, complete, recommender, support)


def builtin_apps() -> dict[str, App]:
    """Every built-in app by its name."""
    return {entry.info.name: entry for entry in _APPS}


def load_builtin(name: str) -> App:
    """A built-in app; raises `NoSuchApp` naming the ones there are and a close match."""
    apps = builtin_apps()
    if name in apps:
        return apps[name]
    close = get_close_matches(name.lower(), apps, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise NoSuchApp(f"There is no app {name!r}; there are {', '.join(apps)}.{hint}")
