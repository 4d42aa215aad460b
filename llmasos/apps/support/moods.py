"""Sentences by how a customer feels, written for this project, and the escalation classifier fitted on them.

Logistic regression on sentence vectors. `HELD_OUT` is for its figures alone and is never fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.apps.sdk import Proc
from llmasos.apps.vectors import Logistic, embed, fit_logistic

ESCALATE_FROM = 0.6
"""Set by hand; what it gives on sentences that were not trained on is in docs/apps/support.md."""

UPSET = (
    "This is unacceptable, I have been waiting for three weeks.",
    "I am furious. Nobody answers my mails.",
    "You people are useless.",
    "This is the worst service I have ever had.",
    "I want to complain about your rude staff.",
    "I am sick of this, you promised it for Monday.",
    "What a joke. The thing broke on the first day.",
    "I feel cheated by your shop.",
    "Stop sending me the same answer again and again!",
    "I will never buy anything from you again.",
    "I am extremely disappointed with how you treat customers.",
    "This is a scam, give me my money back now.",
    "I have called five times and still nothing happens.",
    "Are you kidding me? Another delay?",
    "My lawyer will hear about this.",
    "I am going to report you to consumer protection.",
    "Absolutely ridiculous, you lost my parcel twice.",
    "Your bot is stupid and does not help at all.",
    "I am so angry right now.",
    "It is outrageous that you charge me for your own mistake.",
    "Terrible. Just terrible. Do you even read what I write?",
    "You ruined my daughter's birthday with this delay.",
    "I have had enough of your excuses.",
    "Why is nobody helping me? This is a disgrace.",
    "I hate dealing with this company.",
    "You have wasted my whole day.",
    "Unbelievable, you sent the wrong thing again.",
    "How dare you ignore my complaint?",
    "This is the third broken part, what is wrong with you?",
    "I demand to know why I was lied to.",
    "Fix this immediately or I will post it everywhere.",
    "I am fed up with waiting.",
    "It's a nightmare to get anything from you.",
    "Pathetic support, honestly.",
    "I am really upset, this was expensive and it is rubbish.",
    "You keep ignoring me and I am losing my patience.",
    "So frustrating! Nothing works as you say.",
    "I was treated horribly in your shop.",
    "Your company has stolen my money.",
    "This is beyond a joke, get it sorted.",
)
CALM = (
    "Where is my order?",
    "My parcel has not arrived yet, could you look?",
    "Can I return a helmet?",
    "What are your opening hours?",
    "I would like a refund, the wheel is bent.",
    "The chain broke, is that under warranty?",
    "Thanks, that was quick.",
    "How much does a full service cost?",
    "I moved and need to change my address.",
    "Please cancel my order.",
    "The lamp I got is the wrong colour.",
    "Do you ship to islands?",
    "My brakes squeak, what can I do?",
    "Could I speak to somebody in the workshop?",
    "I am looking for a present for my son.",
    "It arrived damaged, what happens now?",
    "Is the Kestrel in stock?",
    "Hello, I have a question about my bill.",
    "You charged me twice, could you check?",
    "I forgot my password.",
    "When will it be delivered?",
    "The delivery is two days late, is there any news?",
    "Great shop, I love my new bicycle.",
    "Sorry to bother you again, one more question.",
    "No, that is all, thank you.",
    "My order number is FB-1002.",
    "The saddle is a bit uncomfortable, can I exchange it?",
    "How do I tighten the stem bolt?",
    "Which tyre pressure is right for a Heron?",
    "I changed my mind and want to send it back.",
    "There is a scratch on the frame, is that normal?",
    "Do you offer a guarantee on parts?",
    "Can you tell me who founded the co-op?",
    "The pump stopped working after a month.",
    "I need an invoice for my company.",
    "Can I pay in instalments?",
    "Yes please.",
    "I did not receive a confirmation mail.",
    "The bell fell off, can I get a new one?",
    "How long does a repair take?",
)
HELD_OUT = (
    ("I've been on hold forever and you hung up on me, disgusting.", True),
    ("Your staff lied to my face.", True),
    ("Honestly this is a shambles, I want my money now.", True),
    ("I'm livid, it is broken again.", True),
    ("What kind of idiots pack a wheel like that?", True),
    ("I am not going to put up with this any longer.", True),
    ("You should be ashamed of yourselves.", True),
    ("Never again. Awful experience from start to end.", True),
    ("Third time I am asking and you still don't care.", True),
    ("I'm boiling with rage about this invoice.", True),
    ("It is a scandal how you treat people.", True),
    ("Do your damn job.", True),
    ("My parcel is late, when can I expect it?", False),
    ("The frame cracked, how do I claim the warranty?", False),
    ("I'd like my money back please, it does not fit.", False),
    ("Could you explain this charge on my invoice?", False),
    ("Do you repair electric bicycles?", False),
    ("I think I was sent the wrong size.", False),
    ("Lovely, thank you so much!", False),
    ("Is there parking near the shop?", False),
    ("My new address is 12 Elm Street.", False),
    ("The gears slip a little, is that dangerous?", False),
    ("How many days do I have to return it?", False),
    ("Can someone call me back tomorrow?", False),
)


@dataclass(frozen=True, slots=True)
class Mood:
    """How likely a customer is upset."""

    upset: float

    @property
    def escalates(self) -> bool:
        """Whether a person should take over."""
        return self.upset >= ESCALATE_FROM


async def fit_moods(proc: Proc, model: str) -> Logistic:
    """The classifier under an embedding model."""
    rows = await embed(proc, [*UPSET, *CALM], model=model)
    return fit_logistic(rows, [True] * len(UPSET) + [False] * len(CALM))


def figures(told: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Accuracy, precision and recall of upset customers, of (probability, truth) pairs."""
    flagged = [is_upset for p, is_upset in told if p >= ESCALATE_FROM]
    num_upset = sum(is_upset for _, is_upset in told)
    right = sum((p >= ESCALATE_FROM) == is_upset for p, is_upset in told)
    return {
        "accuracy": right / len(told),
        "precision": sum(flagged) / len(flagged) if flagged else 0.0,
        "recall": sum(flagged) / num_upset if num_upset else 0.0,
    }
