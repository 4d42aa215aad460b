"""Makes items.csv and events.csv again, the very same: `python examples/recommender/make_data.py`.

An invented bookshop: 240 books of 12 kinds, 300 readers who each like two kinds and drift to a third, some
books much more popular than others. The readers, the books and what they read are made up.
"""

from __future__ import annotations

import csv
import datetime as dt
import random
from pathlib import Path

KINDS = {
    "crime": ["Murder", "Inspector", "Alibi", "Poison", "Witness", "Verdict"],
    "space": ["Orbit", "Comet", "Colony", "Starship", "Moon", "Signal"],
    "cooking": ["Kitchen", "Bread", "Spice", "Supper", "Garden Table", "Soup"],
    "history": ["Empire", "Revolution", "Castle", "Queen", "Treaty", "Harbour"],
    "romance": ["Summer", "Letter", "Wedding", "Promise", "Violin", "Lighthouse"],
    "fantasy": ["Dragon", "Wizard", "Crown", "Sword", "Forest", "Rune"],
    "travel": ["Road", "Island", "Railway", "Desert", "Mountain Pass", "Ferry"],
    "nature": ["Bird", "River", "Oak", "Whale", "Meadow", "Bee"],
    "science": ["Atom", "Gene", "Equation", "Laboratory", "Light", "Number"],
    "business": ["Market", "Startup", "Money", "Leader", "Factory", "Bargain"],
    "children": ["Rabbit", "Teddy", "Balloon", "Kitten", "Pirate", "Snowman"],
    "poetry": ["Silence", "Rain", "Window", "Shadow", "Autumn", "Song"],
}
SHAPES = [
    "The {} of Fernhill",
    "The Last {}",
    "{} at Midnight",
    "One {} for Two",
    "My First {}",
    "The {} Book",
]
ABOUT = {
    "crime": "A detective story about a killing and its solution.",
    "space": "A science-fiction story among planets and ships.",
    "cooking": "Recipes and stories from the kitchen.",
    "history": "What happened long ago, told with care.",
    "romance": "A love story with obstacles.",
    "fantasy": "Magic, quests and strange creatures.",
    "travel": "A journey through far countries.",
    "nature": "Animals, plants and the seasons.",
    "science": "How the world works, for everybody.",
    "business": "On firms, money and work.",
    "children": "A picture story for small children.",
    "poetry": "A collection of poems.",
}
NUM_READERS, START = 300, dt.datetime(2025, 1, 1)


def main() -> None:
    """Write both files anew."""
    draw = random.Random(2026)
    books = [
        (f"b{len(KINDS) * n + k:03}", shape.format(word), kind)
        for k, (kind, words) in enumerate(KINDS.items())
        for n, (word, shape) in enumerate(
            (words[n % 6], SHAPES[(n + n // 6) % 6]) for n in range(20)
        )
    ]
    weight = {book: 1 / (1 + draw.randrange(40)) for book, _, _ in books}
    of_kind = {kind: [book for book, _, own in books if own == kind] for kind in KINDS}
    folder = Path(__file__).parent
    _write(folder / "items.csv", ["item", "title", "tags", "text"],
           [[book, title, kind, ABOUT[kind]] for book, title, kind in sorted(books)])  # fmt: skip
    rows = []
    for reader in range(NUM_READERS):
        first, second, third = draw.sample(list(KINDS), 3)
        day, read = draw.randrange(60), set[str]()
        for step in range(draw.randrange(8, 32)):
            liked = [first, second] if step < 12 else [second, third]
            kind = draw.choice(liked) if draw.random() < 0.85 else draw.choice(list(KINDS))
            left = [book for book in of_kind[kind] if book not in read]
            book = draw.choices(left, [weight[each] for each in left])[0]
            read.add(book)
            day += draw.randrange(1, 24)
            moment = START + dt.timedelta(days=day, seconds=draw.randrange(86_400))
            rows.append([f"r{reader:03}", book, f"{moment:%Y%m%dT%H%M%S}"])
    _write(folder / "events.csv", ["user", "item", "time"], sorted(rows, key=lambda row: row[2]))


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
