"""What the desk says by itself, in each language that it can speak, and the words it takes for yes and no."""

from __future__ import annotations

import re

SPEAKS = ("en", "es", "de", "fr")

SAYINGS: dict[str, dict[str, str]] = {
    "hello": {
        "en": "Hello{name}! This is {desk}. How can I help?",
        "es": "¡Hola{name}! Aquí {desk}. ¿En qué puedo ayudarle?",
        "de": "Hallo{name}! Hier ist {desk}. Wie kann ich helfen?",
        "fr": "Bonjour{name} ! Ici {desk}. Comment puis-je vous aider ?",
    },
    "thanks": {
        "en": "You are welcome. Is there anything else?",
        "es": "De nada. ¿Algo más?",
        "de": "Gern geschehen. Noch etwas?",
        "fr": "Je vous en prie. Autre chose ?",
    },
    "unknown": {
        "en": "I do not know that, and I would rather not guess.",
        "es": "No lo sé y prefiero no adivinar.",
        "de": "Das weiß ich nicht, und raten möchte ich nicht.",
        "fr": "Je ne le sais pas, et je préfère ne pas deviner.",
    },
    "did_you_mean": {
        "en": "I am not sure. Do you mean: {question} Yes or no.",
        "es": "No estoy seguro. ¿Quiere decir: {question} Sí o no.",
        "de": "Ich bin nicht sicher. Meinen Sie: {question} Ja oder nein.",
        "fr": "Je ne suis pas sûr. Voulez-vous dire : {question} Oui ou non.",
    },
    "hand_over": {
        "en": "I am handing you over to a colleague, who sees what we have written.",
        "es": "Le paso con un compañero, que ve lo que hemos escrito.",
        "de": "Ich übergebe an eine Kollegin, die sieht, was wir geschrieben haben.",
        "fr": "Je vous passe un collègue, qui voit ce que nous avons écrit.",
    },
    "sorry": {
        "en": "I am sorry about this.",
        "es": "Lo siento mucho.",
        "de": "Das tut mir leid.",
        "fr": "Je suis désolé.",
    },
    "only_in": {
        "en": "I have this only in {language}:",
        "es": "Esto solo lo tengo en {language}:",
        "de": "Das habe ich nur auf {language}:",
        "fr": "Je n'ai cela qu'en {language} :",
    },
    "again": {
        "en": "I did not get that.",
        "es": "No lo he entendido.",
        "de": "Das habe ich nicht verstanden.",
        "fr": "Je n'ai pas compris.",
    },
    "yes_or_no": {
        "en": "Please answer yes or no.",
        "es": "Responda sí o no, por favor.",
        "de": "Bitte antworten Sie mit ja oder nein.",
        "fr": "Répondez par oui ou non, s'il vous plaît.",
    },
    "cancelled": {
        "en": "Then I leave everything as it is.",
        "es": "Entonces lo dejo todo como está.",
        "de": "Dann lasse ich alles, wie es ist.",
        "fr": "Alors je laisse tout en l'état.",
    },
    "which": {
        "en": "Which of these: {choices}?",
        "es": "¿Cuál de estos: {choices}?",
        "de": "Welches davon: {choices}?",
        "fr": "Lequel de ceux-ci : {choices} ?",
    },
    "rate": {
        "en": "How was this, from 1 (bad) to 5 (good)?",
        "es": "¿Qué tal ha ido, de 1 (mal) a 5 (bien)?",
        "de": "Wie war das, von 1 (schlecht) bis 5 (gut)?",
        "fr": "C'était comment, de 1 (mauvais) à 5 (bien) ?",
    },
}

LANGUAGES = {
    "en": {"en": "English", "es": "inglés", "de": "Englisch", "fr": "anglais"},
    "es": {"en": "Spanish", "es": "español", "de": "Spanisch", "fr": "espagnol"},
    "de": {"en": "German", "es": "alemán", "de": "Deutsch", "fr": "allemand"},
    "fr": {"en": "French", "es": "francés", "de": "Französisch", "fr": "français"},
}

_YES = "yes yeah yep sure ok okay correct right confirm sí si claro vale ja gerne genau oui"
_NO = "no nope not nein nicht non wrong stop don't cancel"
_YES_WORDS, _NO_WORDS = frozenset(_YES.split()), frozenset(_NO.split())
_CANCEL = re.compile(
    r"\b(cancel (this|that|it)|never ?mind|forget (it|that)|leave it|stop|abbrechen|vergiss es"
    r"|olv[ií]d(alo|elo)|cancelar|laisse[rz]? tomber|annuler)\b",
    re.IGNORECASE,
)
MAX_ANSWER_WORDS = 8


def say(key: str, language: str, /, **values: str) -> str:
    """One of them; in English where it is not in that language."""
    text = SAYINGS[key].get(language, SAYINGS[key]["en"])
    return text.format(**values)


def named(language: str, reader: str) -> str:
    """A language's name for who reads another."""
    return LANGUAGES.get(language, {}).get(reader, language)


def yes_or_no(text: str) -> bool | None:
    """Whether a text agrees; None where that is not plain: whoever agrees says so first, and shortly."""
    words = re.findall(r"[\w']+", text.lower())
    has_yes, has_no = bool(_YES_WORDS & set(words[:1])), bool(_NO_WORDS & set(words))
    if has_no and not has_yes:
        return False
    if has_no or not has_yes or "?" in text or len(words) > MAX_ANSWER_WORDS:
        return None
    return True


def is_cancel(text: str) -> bool:
    """Whether a text wants what is under way dropped."""
    return _CANCEL.search(text) is not None
