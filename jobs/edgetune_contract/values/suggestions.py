"""Suggestions for a name that is not known: the known one that a user probably meant."""

import difflib
from collections.abc import Iterable
from itertools import islice

# Names of a hostile file could number millions, and comparing each of them takes microseconds.
_MOST_COMPARED = 100
_LONGEST_COMPARED = 100
# So that alfa is alpha, and image is not merge.
_SIMILARITY = 0.65


def nearest(name: object, known: Iterable[str], similarity: float = _SIMILARITY) -> str | None:
    """The known name that is spelled most like this one, in upper or lower case; None if none is.

    Args:
        name: what was written; only a text can be meant as another one.
        known: the names that would have been right, the most likely first.
        similarity: smallest ratio of equal characters, 0 to 1.
    """
    if not isinstance(name, str) or len(name) > _LONGEST_COMPARED:
        return None
    by_comparable: dict[str, str] = {}
    for each in known:
        if len(by_comparable) < _MOST_COMPARED and len(each) <= _LONGEST_COMPARED:
            by_comparable.setdefault(_comparable(each), each)
    found = difflib.get_close_matches(_comparable(name), by_comparable, n=1, cutoff=similarity)
    return by_comparable[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name, such as "; did you mean 'rank'?"; empty if no known name is alike."""
    meant = nearest(name, known)
    return "" if meant is None else f"; did you mean {meant!r}?"


def missing_path(shown: object, name: str, neighbours: Iterable[str]) -> str:
    """The message about a path with nothing behind it: the neighbour that was probably meant, or else what to do.

    Args:
        shown: the path or URI as the message names it.
        name: last part of the path.
        neighbours: names of the files and folders that are there instead.
    """
    # Without their suffixes: train.jsonl and eval.jsonl have most letters in common.
    alike = [each for each in islice(neighbours, _MOST_COMPARED) if nearest(_stem(name), [_stem(each)])]
    return f"{shown} does not exist{did_you_mean(name, alike) or '; correct the URI or add the files'}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _comparable(name: str) -> str:
    """learning_rate, learning-rate and learningRate are the same name to most people."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
