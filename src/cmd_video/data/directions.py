"""What a caption says of directions, in a mirror: "to the left" becomes "to the right".

    in_mirror("A ball rolls to the LEFT, clockwise")     # "A ball rolls to the RIGHT, counterclockwise"

English words only: left and right, also as part of leftward(s), leftmost, left-hand; and clockwise. In names of
classes they may be joined as in move_left or MoveLeft. "Right" is also turned where it is no direction ("right now").
"""

import re

_WORDS = re.compile(
    r"(?P<side>left|right)(?P<end>wards?|most|(hand(ed)?|side))?|(?P<counter>(counter|anti)[-_ ]?)?clockwise",
    re.IGNORECASE,
)


def in_mirror(text: str) -> str:
    """The text with every direction turned round; the same text where it has none."""
    return _WORDS.sub(lambda match: _turn(match) if _stands_alone(match) else match[0], text)


def _turn(match: re.Match[str]) -> str:
    word = match[0]
    if match["side"]:
        other = "right" if match["side"].lower() == "left" else "left"
        return _like(match["side"], other) + (match["end"] or "")
    return _like(word, "clockwise" if match["counter"] else "counterclockwise")


def _like(model: str, word: str) -> str:
    """A word in the case of another: LEFT, Left, left."""
    return word.upper() if model.isupper() else word.capitalize() if model[0].isupper() else word


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether it is no part of a longer word; a capital after a small letter begins a new one, as in MoveLeft."""
    text, start, end = match.string, match.start(), match.end()
    before, after, word = text[start - 1 : start], text[end : end + 1], match[0]
    starts = not before.isalpha() or (before.islower() and word[0].isupper())
    ends = not after.isalpha() or (word[-1].islower() and after.isupper())
    return starts and ends
