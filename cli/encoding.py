"""Output in any encoding: a terminal or a file that is not UTF-8 gets replacements, and never a traceback."""

from __future__ import annotations

import codecs
import sys

# Close replacements in ASCII; the blocks of `lsmooth tail` rise from "_" to "@".
_REPLACEMENTS = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.-=+*#@", strict=True)),
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "·": "*",
    "‖": "||",
    "∞": "inf",
    "…": "...",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "γ": "gamma",
    "ρ": "rho",
    "σ": "sigma",
    "Δ": "Delta",
    "η": "eta",
    "∇": "grad ",
}


def print_any_text() -> None:
    """Replace characters that stdout and stderr cannot encode; without this, they end a command in a traceback."""
    codecs.register_error("lsmooth.replace", _replace)
    for stream in (sys.stdout, sys.stderr):
        # Streams of other programs that run a command, such as tests, may have no encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lsmooth.replace")


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_plain(character) for character in error.object[error.start : error.end]), error.end


def _plain(character: str) -> str:
    """Return a character in ASCII: its replacement, its letters without accents, or "?"."""
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    # Imported here: the module loads slowly, and few terminals need it.
    import unicodedata

    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
