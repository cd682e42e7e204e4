"""Makes train.csv and eval.csv: tickets of a help desk, each with the queue that handles it.

    python examples/tickets/generate_data.py [FOLDER]

Which queue a ticket belongs to is this company's own convention: batteries and chargers go to Logistics, which sends
new ones, and passwords go to Security. The evaluation rows have openings, products and complaints that no training row
has.

The rows depend only on SEED. The script needs only the standard library.
"""

import csv
import itertools
import random
import sys
from pathlib import Path

SEED = 7
TRAIN_ROWS = 480
EVAL_ROWS = 80

# Queue: complaints of the training rows, and of the evaluation rows. {product} is filled in.
QUEUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Billing": (
        (
            "the invoice for {product} is too high",
            "we paid for {product} twice",
            "the invoice names the wrong company",
            "the discount on {product} is missing from the invoice",
            "the invoice for {product} has not arrived",
        ),
        ("the amount on the invoice of {product} is wrong", "we were charged twice for {product}"),
    ),
    "Security": (
        (
            "my password for {product} has expired",
            "{product} says that my account is locked",
            "a colleague needs a login for {product}",
            "I forgot the password of {product}",
            "somebody else signed in to {product} with my account",
        ),
        ("{product} does not accept my password", "my account for {product} was locked overnight"),
    ),
    "Logistics": (
        (
            "the battery of {product} is empty after an hour",
            "the charger of {product} is broken",
            "{product} arrived with a broken case",
            "the parcel with {product} is lost",
            "the battery of {product} no longer charges",
        ),
        ("the battery of {product} lasts ten minutes", "{product} was delivered with a broken charger"),
    ),
    "Network": (
        (
            "{product} has no connection",
            "{product} loses its connection in hall 3",
            "the connection of {product} is slow",
            "{product} cannot reach the server",
            "{product} is offline since the router was replaced",
        ),
        ("{product} drops its connection again and again", "{product} does not reach the server any more"),
    ),
}
TRAIN_PRODUCTS = ("the tablet", "the handheld scanner", "the label printer", "the time clock", "the terminal in hall 2")
EVAL_PRODUCTS = ("the barcode reader", "the tablet of the forklift", "the terminal at the gate")
TRAIN_OPENINGS = ("Hello, {}.", "{}. Please help.", "Since Monday {}.", "Dear team, {}. Thank you.", "Urgent: {}!")
EVAL_OPENINGS = ("Good morning, {}. What can we do?", "As of today {}.", "One more problem: {}.")

Row = tuple[str, str]


def rows(count: int, generator: random.Random, *, evaluation: bool) -> list[Row]:
    """`count` distinct tickets with their queues, the same number for each queue."""
    products = EVAL_PRODUCTS if evaluation else TRAIN_PRODUCTS
    openings = EVAL_OPENINGS if evaluation else TRAIN_OPENINGS
    chosen: list[Row] = []
    for queue, (train_complaints, eval_complaints) in QUEUES.items():
        complaints = eval_complaints if evaluation else train_complaints
        tickets = sorted(
            {
                (ticket := opening.format(complaint.format(product=product)))[0].upper() + ticket[1:]
                for opening, complaint, product in itertools.product(openings, complaints, products)
            }
        )
        chosen += [(ticket, queue) for ticket in generator.sample(tickets, min(len(tickets), count // len(QUEUES)))]
    generator.shuffle(chosen)
    return chosen


def write(path: Path, content: list[Row]) -> None:
    """Write a header and the rows, in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ticket", "queue"))
        writer.writerows(content)


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    generator = random.Random(SEED)  # noqa: S311 - sample data, no secrets
    write(folder / "train.csv", rows(TRAIN_ROWS, generator, evaluation=False))
    write(folder / "eval.csv", rows(EVAL_ROWS, generator, evaluation=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
