"""What a draft tells about a greedy answer. Pure functions on token ids.

A model that reads a draft at once chooses a token in each of its places. Its greedy answer is the draft up to the first
place where it chooses another token, then that token: only the rest has to be decoded token by token.
"""

from collections.abc import Collection, Sequence

# As often must an answer end in the same tokens to be taken for a loop.
_REPEATS = 3


def agreement(draft: Sequence[int], choices: Sequence[int]) -> list[int]:
    """First tokens of a greedy answer: those of the draft that the model chooses too, and the first other choice.

    Args:
        draft: token ids.
        choices: the model's choice in the place of each token of the draft, and possibly the one after its last token.
    """
    agreed = next((at for at, token in enumerate(draft) if choices[at] != token), len(draft))
    return list(choices[: agreed + 1])


def loop(answer: Sequence[int], most: int) -> list[int]:
    """A draft for an answer that repeats itself: continued by the tokens that it repeats, up to `most` tokens and four
    times its length, as the draft may be wrong. Empty for any other answer.

    A base model that nothing has taught to end often answers in a loop.
    """
    for period in range(1, len(answer) // _REPEATS + 1):
        repeated = list(answer[-period:])
        if list(answer[-_REPEATS * period :]) == repeated * _REPEATS:
            missing = min(most, 4 * len(answer)) - len(answer)
            return [*answer, *(repeated * (missing // period + 1))[:missing]]
    return []


def cut(answer: Sequence[int], ends: Collection[int], most: int) -> list[int]:
    """An answer up to and with its first end token, of at most `most` tokens."""
    end = next((at for at, token in enumerate(answer[:most], 1) if token in ends), most)
    return list(answer[:end])


def is_finished(answer: Sequence[int], ends: Collection[int], most: int) -> bool:
    """Whether an answer that is cut has its last token."""
    return len(answer) >= most or (len(answer) > 0 and answer[-1] in ends)


def continues(answer: Sequence[int], draft: Sequence[int]) -> bool:
    """Whether a draft has tokens after those of an answer."""
    return len(draft) > len(answer) and list(draft[: len(answer)]) == list(answer)
