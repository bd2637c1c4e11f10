"""Text for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fl_hydra.errors import require

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "γ": r"$\gamma$",
    "Σ": r"$\Sigma$",
    "−": r"$-$",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
    "'": r"'",
    '"': r"''",
}


def escaped(text: str) -> str:
    """Plain text with N_c, gamma and signs as mathematics; characters that LaTeX's fonts may lack become question marks."""
    text = text.replace("N_c", "\0")
    written = "".join(SPECIAL.get(letter, letter if ord(letter) < 0x250 or letter in "–—’“”" else "?") for letter in text)
    return written.replace("\0", "$N_c$")


def code(text: str) -> str:
    """A command in a fixed-width font that can also break after punctuation, so that nothing is wider than a line."""
    words = [re.sub(r"([=,/:.+_-])", "\\1\1", word) for word in text.split()]
    broken = [_breakable(word) for word in words]
    return r"\texttt{" + " ".join(broken) + "}"


def _breakable(word: str) -> str:
    """A word that may break at its marks, and after every 24th letter of a longer part."""
    parts = [part[start : start + 24] for part in word.split("\1") for start in range(0, max(1, len(part)), 24)]
    return r"\allowbreak{}".join(escaped(part).replace("-", "{-}") for part in parts)


def key(*words: str) -> str:
    """The name of a number's macro, in characters that LaTeX allows: `localsgd/LocalSGD K=2 J=4/test:acc/mean`.

    Different words have different names: a `/` in a word becomes `:`, and other characters become their code points, such as `!25!`.
    """
    return "/".join(re.sub(r"[^A-Za-z0-9_=.,+ /-]|(?<= ) ", lambda found: f"!{ord(found[0]):x}!", word).replace("/", ":") for word in words)


def join(found: dict[str, str], more: Mapping[str, str]) -> None:
    """Add numbers by the names of their macros.

    Raises:
        UserError: another number has the same name.
    """
    for name, text in more.items():
        require(
            found.setdefault(name, text) == text, f"\\N{{{name}}}: {found[name]} and {text}: two numbers have the same name; rename one"
        )


def label(name: str) -> str:
    r"""A name for \label and \ref, in characters that LaTeX allows there."""
    return re.sub(r"[^A-Za-z0-9.:_-]", ".", name)
