"""Names that people sign in with: of any script, and never two that look or sort as one. Pure."""

import unicodedata

LONGEST = 64
# Scripts whose letters are drawn alike; a name may use one of them.
ALIKE = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE")


def normalise(name: str) -> str:
    """A name as it is stored and compared: NFC, lower case, no blanks around it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name[: 4 * LONGEST]).strip().lower())


def problem(name: str) -> str | None:
    """The code of the sentence that says why a normalised name can't be used, or None."""
    if not name:
        return "signin.name_missing"
    if len(name) > LONGEST:
        return "signin.name_long"
    if any(not _allowed(c) for c in name):
        return "signin.name_characters"
    if name != normalise(name):
        return "signin.name_plain"
    if unicodedata.category(name[0])[0] not in "LN" or name[-1] in ".-":
        return "signin.name_ends"
    # Full-width and half-width forms, ligatures and the like: another name that looks the same.
    if unicodedata.normalize("NFKC", name) != name:
        return "signin.name_plain"
    if len({script for c in name for script in ALIKE if unicodedata.name(c, "").startswith(script)}) > 1:
        return "signin.name_mixed"
    return None


def _allowed(c: str) -> bool:
    category = unicodedata.category(c)
    return c in "._-" or category[0] == "L" or category in ("Nd", "Mn", "Mc")
