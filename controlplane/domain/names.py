"""Names that could be taken for others: written in other characters that look the same."""

from __future__ import annotations

import unicodedata
from typing import Final

_ALIKE: Final = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "GEORGIAN", "LISU")
"""Scripts with letters that look like each other's. Source: Unicode UTS 39, confusables."""


def fault_of_look(name: str) -> str:
    """Say why a name could be taken for another one; "" if it could not.

    Two rules of UTS 39: it is in compatibility normal form, so that no character is a variant of a plainer one, and its
    letters are of one of the scripts that look alike.
    """
    if unicodedata.normalize("NFKC", name) != name:
        return "has characters that are variants of plainer ones; write it in those"
    scripts = {word for character in name if character.isalpha() if (word := _script(character)) in _ALIKE}
    if len(scripts) > 1:
        return f"mixes letters that look alike, of {' and '.join(sorted(script.capitalize() for script in scripts))}"
    return ""


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
