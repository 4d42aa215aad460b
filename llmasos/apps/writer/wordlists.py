"""English word lists that the checks stand on: wordy phrases, fillers, and two ways of spelling."""

from __future__ import annotations

WORDY = {
    "a large number of": "many",
    "a majority of": "most",
    "a number of": "several",
    "as a means of": "to",
    "as a result of": "because of",
    "at the present time": "now",
    "at this point in time": "now",
    "by means of": "by",
    "despite the fact that": "although",
    "due to the fact that": "because",
    "during the course of": "during",
    "each and every": "every",
    "for the purpose of": "for",
    "for the reason that": "because",
    "has the ability to": "can",
    "have the ability to": "can",
    "in a timely manner": "promptly",
    "in close proximity to": "near",
    "in light of the fact that": "because",
    "in order to": "to",
    "in spite of the fact that": "although",
    "in the event that": "if",
    "in the near future": "soon",
    "in the process of": "now",
    "in view of the fact that": "because",
    "is able to": "can",
    "are able to": "can",
    "it is important to note that": "",
    "it should be noted that": "",
    "make a decision": "decide",
    "make use of": "use",
    "makes use of": "uses",
    "on a daily basis": "daily",
    "on a regular basis": "regularly",
    "on account of the fact that": "because",
    "prior to": "before",
    "subsequent to": "after",
    "take into consideration": "consider",
    "the fact that": "that",
    "the majority of": "most",
    "until such time as": "until",
    "with reference to": "about",
    "with regard to": "about",
    "with respect to": "about",
    "with the exception of": "except",
}
FILLERS_TEXT = "very really quite basically actually literally totally simply just"
FILLERS = frozenset(FILLERS_TEXT.split())

_OUR = "behavi col endeav fav flav harb hon hum lab neighb od rum sav vap vig"
_IZE = (
    "apolog author categor critic custom emphas final general harmon initial local maxim memor minim modern"
    " normal optim organ prior real recogn special standard summar synchron util visual"
)
_OTHER = (
    "centre:center metre:meter litre:liter theatre:theater fibre:fiber defence:defense licence:license"
    " catalogue:catalog dialogue:dialog programme:program analyse:analyze paralyse:paralyze"
    " travelled:traveled"
    " traveller:traveler travelling:traveling cancelled:canceled labelled:labeled modelled:modeled"
    " modelling:modeling signalled:signaled fuelled:fueled grey:gray tyre:tire plough:plow jewellery:jewelry"
    " cheque:check ageing:aging judgement:judgment mould:mold skilful:skillful"
    " fulfil:fulfill aluminium:aluminum"
)


def _pairs() -> dict[str, str]:
    """British spelling to American."""
    pairs = dict(pair.split(":") for pair in _OTHER.split())
    for stem in _OUR.split():
        for ending in ("", "s", "ed", "ing"):
            pairs[f"{stem}our{ending}"] = f"{stem}or{ending}"
    for stem in _IZE.split():
        for ending in ("e", "es", "ed", "ing", "ation", "ations"):
            pairs[f"{stem}is{ending}"] = f"{stem}iz{ending}"
    nouns = ("centre", "metre", "litre", "theatre", "fibre", "tyre", "programme", "catalogue")
    return pairs | {f"{noun}s": f"{pairs[noun]}s" for noun in nouns}


TO_AMERICAN = _pairs()
TO_BRITISH = {american: british for british, american in TO_AMERICAN.items()}
_AMBIGUOUS_TEXT = (
    "check checks tire tires program programs meter meters license mold dialog plow practice"
)
_AMBIGUOUS = frozenset(_AMBIGUOUS_TEXT.split())
"""American spellings that are British words too: nothing follows from them."""
BRITISH = frozenset(TO_AMERICAN)
AMERICAN = frozenset(TO_BRITISH) - _AMBIGUOUS

CONTRACTIONS = {
    "can't": "cannot",
    "couldn't": "could not",
    "didn't": "did not",
    "doesn't": "does not",
    "don't": "do not",
    "hasn't": "has not",
    "haven't": "have not",
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "weren't": "were not",
    "shouldn't": "should not",
    "wouldn't": "would not",
    "won't": "will not",
    "we're": "we are",
    "they're": "they are",
    "you're": "you are",
    "we've": "we have",
    "they've": "they have",
    "we'll": "we will",
    "they'll": "they will",
    "it'll": "it will",
    "i'm": "I am",
}
