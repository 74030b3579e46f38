"""Which answers the lexicons cannot read: those in another script, or without English function words.

No classifier of languages: it only tells text that is surely not English from text that may be, and says nothing of
texts too short to tell. Words that are common in two languages ("in", "no", "die") are left out on both sides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WARN_SHARE = 0.05
"""The share of answers that are not English from which on a warning is given."""
_READ = 2000
"""Characters that are looked at."""
_FEWEST_LETTERS = 4
_FEWEST_WORDS = 10
"""A text of fewer words need not have a function word, nor a list of twice as many."""
_ENGLISH_SHARE = 0.04
"""Share of function words below which text of enough words is not English; English prose has 0.25 and more."""

_ENGLISH = _words(
    """the and of to that with this you it are your have can will would from which their they what how not be or but is
    for by i i'm it's can't don't as a an at if we our my me he she his her was were has had do does did there here who
    when where why because should could may might these those than then them its into about please sorry"""
)
_OTHERS = (
    _words(
        """de la el los las que y en un una por para con del es lo se su como pero más ayudar puedo siento
    le les des et du est pas je vous nous ne dans pour sur avec ce cette sont mais peux désolé aider
    der das und ist nicht ich zu den dem ein eine mit auf für sie wir aber kann leid es von wie wird dass bei
    di che il non è per sono gli della questo mi dispiace posso ma come più anche
    não uma os com o da em ao você eu isso mas ajudar desculpe
    het een van niet ik dat voor maar met op zijn kan helaas
    och att det som inte jag är på av för med kan tyvärr
    og jeg ikke til kan beklager
    nie się na w z jest to że do i mogę przepraszam jak
    bir ve bu için değil ile çok
    yang dan tidak untuk saya dengan ini itu dari maaf bisa
    không tôi và của là xin lỗi thể với
    nu și să este pot îmi pare rău ca
    a az és nem hogy egy sajnálom tudok
    ja on ei en että voi mutta anteeksi
    je se že nemohu omlouvám ale pro"""
    )
    - _ENGLISH
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class Unread(NamedTuple):
    """Answers that the lexicons cannot read.

    Attributes:
        n: answers with text.
        not_english: of them, those that are surely not English.
    """

    n: int
    not_english: int

    @property
    def share(self) -> float:
        """NaN where there is no answer."""
        return self.not_english / self.n if self.n else float("nan")


def is_not_english(text: str) -> bool:
    """Whether a text is surely not English: in another script, or in Latin script without English function words.

    Code, addresses, numbers and texts too short to tell are not.
    """
    prose = _CODE.sub(" ", text[:_READ])
    letters = [character for character in prose if character.isalpha()]
    if len(letters) < _FEWEST_LETTERS:
        return False
    latin = sum(unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN")) for letter in letters)
    if 2 * latin < len(letters):
        return True
    words = [word.lower().replace("’", "'") for word in _WORD.findall(prose)]
    english = sum(word in _ENGLISH for word in words)
    others = sum(word in _OTHERS for word in words)
    if others >= 2 and others > english:
        return True
    return english < _ENGLISH_SHARE * len(words) and len(words) >= (_FEWEST_WORDS if others else 2 * _FEWEST_WORDS)


def count_unread(responses: Iterable[object]) -> Unread:
    """How many answers are not English; what is no text (no answer) is not counted."""
    texts = [response for response in responses if isinstance(response, str)]
    return Unread(len(texts), sum(map(is_not_english, texts)))


def unread_by(groups: Iterable[tuple[str, Iterable[object]]]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What to record and what to warn of.

    Args:
        groups: names, as of cells, and their answers.

    Returns:
        Name → `n` and `not_english` of `Unread`; a warning for each of which `WARN_SHARE` is not English.
    """
    counts = {name: count_unread(responses) for name, responses in groups}
    warnings = [
        f"{name}: {unread.not_english} of {unread.n} answers ({100 * unread.share:.1f} %) are not English (in another "
        "script, or without English function words). The lexicons read English only: their labels of these mean "
        "nothing. Have them labelled by a judge (python -m probes.judges)"
        for name, unread in counts.items()
        if unread.n and unread.share >= WARN_SHARE
    ]
    return {name: unread._asdict() for name, unread in counts.items()}, warnings
