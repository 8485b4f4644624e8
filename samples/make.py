"""The shipped sample: synthetic support messages with simulated annotators.

Every text is put together from phrases, one per right answer, and every simulated annotator sees
the right answers through a bias and noise of their own. So the right answers are known, and with
them the alpha that a perfect judge would reach: `samples/support-messages-gold.csv`. Further
messages that nobody annotated, `samples/new-messages.csv`, are there for the trained judge.

    python samples/make.py samples/
"""

import csv
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SEED, N_ITEMS, N_NEW = 20260401, 720, 200

OPENINGS = [
    "Hi there,", "Hello,", "Good morning,", "Dear team,", "Hey,", "To whom it may concern,",
    "Hi support,", "Good evening,", "", "",
]  # fmt: skip

THINGS = [
    "kettle", "lamp", "jacket", "headset", "backpack", "blender", "keyboard", "tent", "monitor",
    "scooter", "camera", "desk", "rug", "toaster", "watch", "printer", "guitar", "bicycle",
]  # fmt: skip

TOPICS = {
    "billing": [
        "the invoice for the {thing} shows a charge that I do not recognise",
        "my card was charged twice for the {thing}",
        "the payment for my {thing} went through with the wrong amount",
        "the discount code was not taken off the bill for the {thing}",
        "I see a subscription fee next to the {thing} on my statement",
    ],
    "delivery": [
        "the parcel with my {thing} has not arrived",
        "the courier left the {thing} at a wrong address",
        "tracking for the {thing} has said in transit for days",
        "my {thing} was shipped to a street where I lived years ago",
        "the driver marked the {thing} as delivered but the porch is empty",
    ],
    "product": [
        "the {thing} came with a crack in it",
        "the {thing} stopped working after one use",
        "the {thing} is not the colour shown in the pictures",
        "a part is missing from the box of the {thing}",
        "the {thing} makes a loud rattling noise",
    ],
    "account": [
        "I cannot log in to look at my order of a {thing}",
        "the password reset mail never comes, so my {thing} stays in the cart",
        "please change the phone number saved with my {thing} order",
        "somebody signed in to my profile and looked at the {thing} order",
        "my username is locked since I ordered the {thing}",
    ],
    "praise": [
        "I love the {thing}, thank you so much",
        "the {thing} is wonderful and your staff were kind",
        "great service with the {thing}, five stars from me",
        "my daughter adores the {thing}, many thanks to everybody",
        "the {thing} is even better than I hoped, well done",
    ],
}

URGENCY = {
    1: ["There is no rush.", "Whenever you find the time.", "Take as long as you need.",
        "Answer at your leisure."],
    2: ["I hope to hear from you this week.", "A reply in the next few days is fine.",
        "Please look at it before the weekend.", "By Friday would be good."],
    3: ["I need to know today.", "Please reply this afternoon.",
        "It has to be settled by tonight.", "I am waiting for an answer today."],
    4: ["This is an emergency, answer immediately!", "Act now, every minute does harm!",
        "I need help right this second!", "Urgent!!! It is dangerous, call me at once!"],
}  # fmt: skip

REFUND = {
    True: ["I want my money back.", "Please refund me.", "Reverse the charge, please.",
           "I expect a full refund.", "Send the money back to my account."],
    False: ["", "Please let me know what you think.", "That is all from my side.",
            "I would like to understand it.", "Just so that you know."],
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A text and its right answers."""

    item_id: str
    text: str
    urgency: int
    topic: str
    refund: bool


@dataclass(frozen=True)
class Annotator:
    """A simulated annotator: how often they err, and in which direction."""

    annotator_id: str
    share_rated: float
    """Share of the items that they annotated."""
    urgency_bias: float
    """Levels added before rounding: an alarmed annotator is above 0."""
    urgency_noise: float
    """Standard deviation, in levels."""
    topic_error: float
    """Share of topics answered at random."""
    refund_miss: float
    """Share of refund requests overlooked."""
    refund_false_alarm: float
    """Share of other messages read as refund requests."""


ANNOTATORS = [
    Annotator("ann_1", 1.00, 0.00, 0.35, 0.03, 0.03, 0.02),
    Annotator("ann_2", 1.00, 0.25, 0.45, 0.06, 0.04, 0.06),
    Annotator("ann_3", 1.00, -0.30, 0.40, 0.08, 0.12, 0.01),
    Annotator("ann_4", 0.50, 0.10, 0.70, 0.15, 0.10, 0.10),
]


def make_items(n_items: int, rng: random.Random) -> list[Item]:
    """Draw distinct texts; answers are independent, but praise seldom asks for money."""
    items: dict[str, Item] = {}
    while len(items) < n_items:
        topic = rng.choice(list(TOPICS))
        urgency = rng.choice(list(URGENCY))
        refund = rng.random() < (0.08 if topic == "praise" else 0.45)
        body = rng.choice(TOPICS[topic]).format(thing=rng.choice(THINGS))
        sentences = [body[0].upper() + body[1:] + ".", rng.choice(URGENCY[urgency])]
        sentences.insert(rng.randrange(1, 3), rng.choice(REFUND[refund]))
        text = " ".join(part for part in [rng.choice(OPENINGS), *sentences] if part)
        if text not in items:
            items[text] = Item(f"msg_{len(items):04d}", text, urgency, topic, refund)
    return list(items.values())


def annotate(item: Item, annotator: Annotator, rng: random.Random) -> tuple[int, str, bool]:
    """The labels that `annotator` gives: urgency, topic, refund."""
    noisy = item.urgency + rng.gauss(annotator.urgency_bias, annotator.urgency_noise)
    urgency = min(max(round(noisy), 1), 4)
    topic = rng.choice(list(TOPICS)) if rng.random() < annotator.topic_error else item.topic
    flip = annotator.refund_miss if item.refund else annotator.refund_false_alarm
    return urgency, topic, item.refund != (rng.random() < flip)


def _write(path: Path, header: list[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_sample(folder: Path, n_items: int = N_ITEMS, seed: int = SEED) -> None:
    """Write `support-messages.csv` (long), its `-gold.csv` and `new-messages.csv`."""
    rng = random.Random(seed)  # noqa: S311
    items = make_items(n_items, rng)
    rows = [
        [item.item_id, annotator.annotator_id, item.text, urgency, topic, str(refund).lower()]
        for item in items
        for annotator in ANNOTATORS
        if rng.random() < annotator.share_rated
        for urgency, topic, refund in [annotate(item, annotator, rng)]
    ]
    gold = [[i.item_id, i.urgency, i.topic, str(i.refund).lower()] for i in items]
    folder.mkdir(parents=True, exist_ok=True)
    known = {item.text for item in items}
    fresh = [i for i in make_items(2 * N_NEW, random.Random(seed + 1)) if i.text not in known]  # noqa: S311
    new = [[f"new_{number:04d}", item.text] for number, item in enumerate(fresh[:N_NEW])]
    dimensions = ["urgency", "topic", "refund"]
    _write(folder / "support-messages.csv", ["item_id", "annotator_id", "text", *dimensions], rows)
    _write(folder / "support-messages-gold.csv", ["item_id", *dimensions], gold)
    _write(folder / "new-messages.csv", ["item_id", "text"], new)


if __name__ == "__main__":
    write_sample(Path(sys.argv[1] if len(sys.argv) > 1 else "samples"))
