"""Shakespeare's plays as federated text: every role of every play is a user (LEAF, Caldas et al. 2018, arXiv 1812.01097).

Two tasks are made from the same raw text, Project Gutenberg's etext 100 in its edition of 1994:

- LEAF's: predict the character that follows 80 characters of a user's text (:func:`from_raw`, :func:`divide`, :func:`from_json`);
- that of Reddi et al. (ICLR 2021, arXiv 2003.00295): predict every character of a speech from those before it (:func:`sequences`).

Windows overlap in all but one character, so they are never stored: there is one array of characters, and windows are positions in it.
"""

from __future__ import annotations

import io
import json
import re
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_hydra.errors import UserError, require
from fl_hydra.files import write_atomically

LEAF_ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters of LEAF's task, in its order; a character's code is its index."""
WINDOW = 80
"""Characters of an input of LEAF's task; the next one is the target."""

SEQUENCE_ALPHABET = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
"""The 86 characters of the sequences, in TensorFlow Federated's order; a character's token is its index + 1."""
PAD = 0
UNKNOWN = len(SEQUENCE_ALPHABET) + 1
BEGIN = len(SEQUENCE_ALPHABET) + 2
END = len(SEQUENCE_ALPHABET) + 3
VOCABULARY = len(SEQUENCE_ALPHABET) + 4
"""Number of different tokens: padding, 86 characters, out of vocabulary, begin, end; 90 in all."""
SEQUENCE = 81
"""Tokens of a sequence: the first 80 are inputs, the last 80 targets."""

FOLDER = "shakespeare"
RAW = "raw_data.txt"
ARCHIVE = "1994-01-100.zip"
ADDRESSES = (
    f"http://www.gutenberg.org/files/100/old/{ARCHIVE}",
    f"https://www.gutenberg.org/files/100/old/old/{ARCHIVE}",  # where the first one was moved to
)
FIRST_LINE = "This is the 100th Etext file presented by Project Gutenberg, and"
LAST_WORDS = "End of this Etext of The Complete Works of William Shakespeare"
BYLINE = "by William Shakespeare"
LAST_LINE = 124_196  # LEAF reads no line (counted from 0) after this one, where the plays end
EDITION = "the text of Project Gutenberg's etext 100 in the edition of 1994, whole or cut off at its end,"

_NOT_IN_ALPHABET = 255


@dataclass(frozen=True)
class Corpus:
    """The users' texts, one after the other.

    Attributes:
        characters: uint8 [T], codes in :data:`LEAF_ALPHABET`.
        users: names (play and role), ascending.
        starts: int64 [users + 1]; the text of user u is `characters[starts[u]:starts[u + 1]]`.
    """

    characters: NDArray[np.uint8]
    users: tuple[str, ...]
    starts: NDArray[np.int64]

    def text(self, user: int) -> str:
        """The text of a user, as written."""
        return decode(self.characters[self.starts[user] : self.starts[user + 1]])

    def window_counts(self) -> NDArray[np.int64]:
        """Windows of each user, all at least 1; int64 [users]. Window i is characters i..i+79, its target character i+80."""
        return np.diff(self.starts) - WINDOW


@dataclass(frozen=True)
class Windows:
    """Windows of a set, ordered by user, then as LEAF orders them.

    Attributes:
        starts: int32 [N], where in the characters the window begins; its target is 80 characters on.
        users: int32 [N], ascending, whose window it is.
    """

    starts: NDArray[np.int32]
    users: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class WindowSets:
    """Training and test windows over one array of characters; the same from the raw text and from the json that LEAF makes of it.

    Attributes:
        characters: uint8 [T], codes in :data:`LEAF_ALPHABET`.
        users: names, ascending; every one has a window in at least one of the sets.
        train: training windows.
        test: test windows.
    """

    characters: NDArray[np.uint8]
    users: tuple[str, ...]
    train: Windows
    test: Windows

    def inputs(self, windows: Windows) -> NDArray[np.uint8]:
        """Codes of the 80 characters of each window; uint8 [N, 80]."""
        views = np.lib.stride_tricks.sliding_window_view(self.characters, WINDOW)
        return np.asarray(views[windows.starts])

    def targets(self, windows: Windows) -> NDArray[np.uint8]:
        """Code of the character after each window; uint8 [N]."""
        return self.characters[windows.starts.astype(np.int64) + WINDOW]


@dataclass(frozen=True)
class Tokens:
    """Sequences of a set, ordered by user, then by speech.

    Attributes:
        tokens: uint8 [N, 81]; inputs are the first 80 of each, targets the last 80, without those that are :data:`PAD`.
        users: int32 [N], ascending, whose sequence it is.
    """

    tokens: NDArray[np.uint8]
    users: NDArray[np.int32]


@dataclass(frozen=True)
class Sequences:
    """Training and test sequences of the task of Reddi et al.; `users` are names, ascending, and each is in both sets."""

    users: tuple[str, ...]
    train: Tokens
    test: Tokens


def decode(codes: NDArray[np.uint8]) -> str:
    """The text whose characters have these codes in :data:`LEAF_ALPHABET`; uint8 [n]."""
    return _LETTERS[codes].tobytes().decode("ascii")


# ---------------------------------------------------------------------------------------------------------------- raw text


@dataclass(frozen=True)
class _Speech:
    """What a role says until the next role speaks; the first line is the rest of the line that names the role."""

    role: str
    lines: list[str]


# The Comedy of Errors is set two columns further left than the other plays.
_INDENT = "  "
_SHIFTED = "THE COMEDY OF ERRORS"
_CUE = re.compile(r"(?P<role>[A-Z][A-Z ]*)\. (?P<words>.*)", re.ASCII | re.IGNORECASE)


def from_raw(path: Path) -> Corpus:
    """Read the raw text into the users and texts that LEAF's preprocessing makes of it.

    A user's text is the lines of a role, each followed by a space, with every run of spaces collapsed into one. Plays with a single
    role, roles with at most two lines and texts that are too short for a window (80 characters or fewer) are left out.

    Raises:
        UserError: no such file, another text, no role in it, or a character that LEAF's alphabet lacks.
    """
    texts: dict[str, list[str]] = {}
    for title, speeches in _plays(path):
        lines_of: dict[str, list[str]] = {}
        for speech in speeches:
            lines_of.setdefault(speech.role, []).extend(speech.lines)
        for role, lines in lines_of.items():
            if len(lines) > 2:
                texts.setdefault(_user(title, role), []).extend(lines)
    joined = {user: re.sub("  +", " ", " ".join(lines) + " ") for user, lines in texts.items()}
    users = tuple(sorted(user for user, text in joined.items() if len(text) > WINDOW))
    require(bool(users), f"{path}: no role speaks more than {WINDOW} characters; {EDITION} is needed, with more of the plays")
    codes = [_encode(joined[user], f"{path}: the text of {user}") for user in users]
    return Corpus(np.concatenate(codes), users, np.cumsum([0, *map(len, codes)], dtype=np.int64))


def _plays(path: Path) -> Iterator[tuple[str, list[_Speech]]]:
    """Title and speeches of each play that has two roles or more, in the order of the file."""
    lines = _lines(path)
    bylines = [number for number, line in enumerate(lines) if BYLINE in line and number <= LAST_LINE]
    bylines = bylines[1:]  # the first work is the sonnets
    borders = [*bylines, min(len(lines), LAST_LINE + 1)]
    found = False
    for byline, end in zip(bylines, borders[1:], strict=True):
        title = next((line.strip() for line in lines[byline - 2 : max(byline - 8, 0) : -1] if line.strip()), "")
        speeches = list(_speeches(lines[byline + 1 : end], shifted=title == _SHIFTED))
        if len({speech.role for speech in speeches}) > 1:
            found = True
            yield title, speeches
    require(found, f"{path}: no play was found in it; {EDITION} is needed, with at least one play")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {EDITION} is needed there") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a file with {EDITION} is needed") from error
    lines = text.splitlines()
    require(
        bool(lines) and lines[0].strip() == FIRST_LINE,
        f"{path} is another text: it does not begin with '{FIRST_LINE}'; {EDITION} is needed (raw_data.txt of LEAF)",
    )
    return lines


def _speeches(lines: Sequence[str], shifted: bool) -> Iterator[_Speech]:
    """The speeches of a play; in `shifted` ones (The Comedy of Errors), every line that names no role continues the speech."""
    cue_indent, speech_indent = ("", "") if shifted else (_INDENT, _INDENT * 2)
    speech: _Speech | None = None
    for line in lines:
        cue = _CUE.match(line, len(cue_indent)) if line.startswith(cue_indent) else None
        if cue is not None:
            if speech is not None:
                yield speech
            role = cue["role"].upper()  # some are spelled in two ways
            # Without an indent, the heading of an act looks like a role, and the publisher's notice (<<...) like a speech.
            speech = None if shifted and role.startswith("ACT ") else _Speech(role, [cue["words"]])
        elif shifted and line.startswith("<"):
            if speech is not None:
                yield speech
            speech = None
        elif speech is not None and line.startswith(speech_indent):
            speech.lines.append(line[len(speech_indent) :])
    if speech is not None:
        yield speech


def _user(title: str, role: str) -> str:
    return re.sub(r"[^\w ]+| ", "_", f"{title}_{role}")


def _codes(alphabet: str) -> NDArray[np.uint8]:
    table = np.full(256, _NOT_IN_ALPHABET, np.uint8)
    table[np.frombuffer(alphabet.encode("ascii"), np.uint8)] = np.arange(len(alphabet), dtype=np.uint8)
    return table


_LETTERS = np.frombuffer(LEAF_ALPHABET.encode("ascii"), np.uint8)
_LEAF_CODES = _codes(LEAF_ALPHABET)
_TOKENS = _codes(SEQUENCE_ALPHABET) + np.uint8(1)
_TOKENS[_TOKENS == 0] = UNKNOWN  # 255 + 1 wraps to 0


def _encode(text: str, whose: str) -> NDArray[np.uint8]:
    codes = _LEAF_CODES[np.frombuffer(text.encode("latin-1", errors="replace"), np.uint8)]
    # A character beyond Latin-1 became "?", which has a code, so the codes can be trusted only if the text is ASCII.
    if not text.isascii() or (codes == _NOT_IN_ALPHABET).any():
        unknown = next(character for character in text if character not in LEAF_ALPHABET)
        raise UserError(
            f"{whose} holds {unknown!r}, which is none of the {len(LEAF_ALPHABET)} characters of LEAF's alphabet (letters, digits, blanks "
            "and common punctuation); replace the file with an intact copy"
        )
    return codes


# ------------------------------------------------------------------------------------------------------------ split by sample


def split(n_windows: int, fraction: float = 0.9) -> tuple[int, int]:
    """LEAF's split of a user's windows by sample, with a gap: a test window shares at most its first character with training.

    Args:
        n_windows: windows of the user, at least 1.
        fraction: part of the windows that is for training, in (0, 1).

    Returns:
        How many of the first windows are for training, and the index of the first test window; if that is not less than `n_windows`, no
        test window is left and the user takes part in neither set.
    """
    train_count = max(1, int(fraction * n_windows))  # a float product, as in LEAF
    return train_count, train_count + WINDOW - 1


def divide(corpus: Corpus, fraction: float = 0.9, minimum: int = 0) -> WindowSets:
    """Split every user's windows by :func:`split`; users with fewer than `minimum` windows or without a test window are left out.

    Args:
        corpus: the users' texts.
        fraction: part of each user's windows that is for training, in (0, 1) (LEAF's `--tf`).
        minimum: windows that a user must have before the split (LEAF's `-k`).

    Raises:
        UserError: no user is left, or `fraction` is out of range.
    """
    counts = corpus.window_counts()
    parts, users = [], []
    for user, name in enumerate(corpus.users):
        ranges = _divided(int(counts[user]), fraction, minimum)
        if ranges is not None:
            characters = corpus.characters[corpus.starts[user] : corpus.starts[user + 1]]
            parts.append(_Part(characters, np.asarray(ranges[0]), np.asarray(ranges[1])))
            users.append(name)
    _require_users(users, minimum, int(counts.max()), len(corpus.users))
    return _assemble(users, parts)


def _divided(n_windows: int, fraction: float, minimum: int) -> tuple[range, range] | None:
    """Training and test windows of a user; None if it takes part in neither set."""
    require(0 < fraction < 1, f"a fraction of {fraction} of the windows for training: a number between 0 and 1 is needed")
    train_count, test_start = split(n_windows, fraction)
    if n_windows < max(minimum, 2) or test_start >= n_windows:
        return None
    return range(train_count), range(test_start, n_windows)


def _require_users(users: Sequence[str], minimum: int, most: int, of: int) -> None:
    require(
        bool(users),
        f"none of the {of} users has {minimum} windows or more and one left for testing (the most any has is {most}); "
        "ask for a lower minimum, or use more of the text",
    )


@dataclass(frozen=True)
class _Part:
    """One user's characters uint8 [T] and where in them the training and test windows begin; int64 [N]."""

    characters: NDArray[np.uint8]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def _assemble(users: Sequence[str], parts: Sequence[_Part]) -> WindowSets:
    bases = np.cumsum([0, *(len(part.characters) for part in parts)], dtype=np.int64)
    require(int(bases[-1]) < 2**31, f"{bases[-1]} characters are more than the {2**31 - 1} that positions can name; use a smaller sample")

    def windows(starts: Sequence[NDArray[np.int64]]) -> Windows:
        counts = [len(own) for own in starts]
        positions = np.concatenate([own + base for own, base in zip(starts, bases, strict=False)])
        return Windows(positions.astype(np.int32), np.repeat(np.arange(len(counts), dtype=np.int32), counts))

    train, test = windows([part.train for part in parts]), windows([part.test for part in parts])
    return WindowSets(np.concatenate([part.characters for part in parts]), tuple(users), train, test)


# ---------------------------------------------------------------------------------------------------------------- LEAF's json


_EMPTY = np.empty((0, WINDOW + 1), np.uint8)
_SET_FILE = re.compile(r"_(train|test)_\d+\.json$")


def from_json(path: Path, fraction: float = 0.9, minimum: int = 0) -> WindowSets:
    """Read what LEAF's preprocessing wrote.

    Args:
        path: a folder with `train/*.json` and `test/*.json`, split by LEAF by sample or by user; or a file `all_data*.json` of LEAF's
            `all_data` or `sampled_data`, or a folder with such files, which is split here by :func:`split`.
        fraction: as in :func:`divide`; ignored if LEAF has already split.
        minimum: as in :func:`divide`; ignored if LEAF has already split.

    Returns:
        The windows in LEAF's order, users ordered by name. A user may be in one of the sets only (LEAF's split by user). Consecutive
        windows share their characters; all others are stored in full (after LEAF's `iid` sampling, nearly all windows).

    Raises:
        UserError: a file is missing, truncated, corrupted, contradicts itself or belongs to another of LEAF's tasks.
    """
    train_files, test_files = (sorted((path / name).glob("*.json")) for name in ("train", "test"))
    if train_files or test_files:
        for name, files in (("train", train_files), ("test", test_files)):
            require(bool(files), f"{path} has no {name}/*.json beside the other set; LEAF's preprocessing writes both: copy {name}/ too")
        return _from_sets(_read_users(train_files), _read_users(test_files, test=True), path)
    if path.is_dir():
        files = sorted(path.glob("all_data*.json")) or sorted((path / "all_data").glob("all_data*.json"))
        require(bool(files), f"{path} holds neither train/*.json and test/*.json nor all_data*.json; name a folder of LEAF's data")
    else:
        require(path.is_file(), f"{path}: no such file or folder; name a folder with train/ and test/, or an all_data*.json, of LEAF")
        files = [path]
    for file in files:
        half = _SET_FILE.search(file.name) is not None or file.parent.name in ("train", "test")
        require(not half, f"{file} is one of two sets; name the folder that holds train/ and test/: {file.resolve().parent.parent}")
    return _from_unsplit(_read_users(files), path, fraction, minimum)


def _from_sets(train: Mapping[str, NDArray[np.uint8]], test: Mapping[str, NDArray[np.uint8]], path: Path) -> WindowSets:
    for name, found in (("train", train), ("test", test)):
        require(bool(found), f"{path / name} holds no window; make it again with LEAF's preprocessing, or with a larger sample")
    users = sorted({*train, *test})
    return _assemble(users, [_pack(train.get(user, _EMPTY), test.get(user, _EMPTY)) for user in users])


def _from_unsplit(found: Mapping[str, NDArray[np.uint8]], path: Path, fraction: float, minimum: int) -> WindowSets:
    require(bool(found), f"{path} holds no window; make it again with LEAF's preprocessing, or with a larger sample")
    parts, users = [], []
    for user in sorted(found):
        codes = found[user]
        ranges = _divided(len(codes), fraction, minimum)
        if ranges is not None:
            parts.append(_pack(codes[ranges[0].start : ranges[0].stop], codes[ranges[1].start : ranges[1].stop]))
            users.append(user)
    _require_users(users, minimum, max(map(len, found.values())), len(found))
    return _assemble(users, parts)


def _pack(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> _Part:
    """Store a user's windows, uint8 [N, 81] for each set, with overlapping characters stored once."""
    train_characters, train_starts = _chained(train)
    test_characters, test_starts = _chained(test)
    # LEAF's split by sample leaves out 79 windows, so the test text begins with the last character of the training text. Stored once,
    # it joins the two as in the raw text.
    shared = int(len(train) > 0 and len(test) > 0 and train[-1, -1] == test[0, 0])
    characters = np.concatenate([train_characters, test_characters[shared:]])
    return _Part(characters, train_starts, test_starts + len(train_characters) - shared)


def _chained(windows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Characters that hold these windows of 81, and where each begins. A window that is not the last one moved by one starts afresh."""
    if not len(windows):
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    fresh = np.ones(len(windows), bool)
    fresh[1:] = (windows[1:, :-1] != windows[:-1, 1:]).any(1)
    starts = np.cumsum(np.where(fresh, WINDOW + 1, 1)) - (WINDOW + 1)
    characters = np.empty(int(starts[-1]) + WINDOW + 1, np.uint8)
    characters[starts + WINDOW] = windows[:, -1]
    characters[starts[fresh][:, None] + np.arange(WINDOW)] = windows[fresh, :-1]
    return characters, starts


def _read_users(files: Sequence[Path], test: bool = False) -> dict[str, NDArray[np.uint8]]:
    """Windows of every user that has any, uint8 [N, 81] with the target last; `test`: whether these are LEAF's test files."""
    found: dict[str, NDArray[np.uint8]] = {}
    for file in files:
        for user, windows in _read_file(file, test):
            require(user not in found, f"{file}: the user {user} is there twice, or in another file too; remove one of them")
            found[user] = windows
    return found


def _read_file(file: Path, test: bool) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unusable(file, f"is truncated or corrupted ({error})") from error
    except OSError as error:
        raise _unusable(file, f"cannot be read ({error.strerror})") from error
    for key, kind, called in (("users", list, "list"), ("num_samples", list, "list"), ("user_data", dict, "dictionary")):
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise _unusable(file, f"is not a file of LEAF: it has no {called} '{key}' (users, num_samples and user_data are needed)")
    users, sizes, data = content["users"], content["num_samples"], content["user_data"]
    if not all(isinstance(user, str) for user in users):
        raise _unusable(file, "is not a file of LEAF: its users are not all names")
    if not all(isinstance(size, int | float) and not isinstance(size, bool) for size in sizes):
        raise _unusable(file, "is not a file of LEAF: its num_samples are not all numbers")
    if len(users) != len(sizes):
        raise _unusable(file, f"contradicts itself: it names {len(users)} users, but gives num_samples of {len(sizes)}")
    for user, size in zip(users, sizes, strict=True):
        if user not in data:
            raise _unusable(file, f"contradicts itself: the user {user} is named twice, or has no user_data")
        codes = _read_windows(file, user, data.pop(user))
        # In test files, LEAF's num_samples includes the 79 windows between the sets, which LEAF does not write.
        if size != len(codes) and not (test and size == len(codes) + WINDOW - 1):
            raise _unusable(file, f"contradicts itself: num_samples of the user {user} is {size}, but its user_data holds {len(codes)}")
        if len(codes):
            yield user, codes
    # Older versions of LEAF leave an empty entry for a user that was dropped.
    unnamed = next((user for user, own in data.items() if not isinstance(own, dict) or own.get("y")), None)
    if unnamed is not None:
        raise _unusable(file, f"contradicts itself: user_data holds {unnamed}, which is none of its users")


def _read_windows(file: Path, user: str, own: Any) -> NDArray[np.uint8]:
    """Codes of a user's windows and targets, uint8 [N, 81], from {"x": [strings of 80 characters], "y": [characters]}."""
    if not isinstance(own, dict) or not isinstance(own.get("x"), list) or not isinstance(own.get("y"), list):
        raise _unusable(file, f"is not a file of LEAF: user_data of {user} has no lists x and y")
    if len(own["x"]) != len(own["y"]):
        raise _unusable(file, f"contradicts itself: user_data of {user} has {len(own['x'])} x, but {len(own['y'])} y")
    codes = np.empty((len(own["y"]), WINDOW + 1), np.uint8)
    for name, size, columns in (("x", WINDOW, slice(WINDOW)), ("y", 1, slice(WINDOW, None))):
        values, needed = own[name], f"strings of {size} character{'s' if size > 1 else ''} are needed"
        # Sets of types and lengths, because a check of every value in Python would be slow.
        if other := sorted(kind.__name__ for kind in set(map(type, values)) - {str}):
            raise _unusable(file, f"is of another task of LEAF: {name} of {user} holds a {other[0]}, where {needed}")
        if wrong := sorted(set(map(len, values)) - {size}):
            raise _unusable(file, f"is of another task of LEAF: {name} of {user} holds a string of {wrong[0]}, where {needed}")
        codes[:, columns] = _encode("".join(values), f"{file}: {name} of {user}").reshape(-1, size)
    return codes


def _unusable(file: Path, why: str) -> UserError:
    return UserError(f"{file} {why}; make it again with LEAF's preprocessing of shakespeare, or replace it with an intact copy")


# --------------------------------------------------------------------------------------------- the sequences of Reddi et al.


def sequences(path: Path) -> Sequences:
    """Read the raw text into the sequences of Reddi et al. (ICLR 2021, appendix), as TensorFlow Federated (TFF) makes them.

    A speech is what a role says until the next one speaks, its lines joined by newlines. Its tokens are begin, its characters and end,
    padded and cut into pieces of 81; pieces do not overlap, so the first token of each is never a target. The first 80 % of a user's
    speeches (rounded down, at least one) are for training, the others for testing. Users with fewer than two speeches are left out, as
    are plays with a single role. TFF's own file was made from another edition of the text, so its counts (715 users) differ.

    Raises:
        UserError: as :func:`from_raw`, but a character out of the vocabulary becomes :data:`UNKNOWN`.
    """
    require(not path.is_dir() and path.suffix != ".json", f"{path} has no borders of speeches; for sequences, {EDITION} is needed")
    spoken: dict[str, list[str]] = {}
    for title, speeches in _plays(path):
        for speech in speeches:
            spoken.setdefault(_user(title, speech.role), []).append("\n".join(speech.lines))
    users = tuple(sorted(user for user, texts in spoken.items() if len(texts) > 1))
    require(bool(users), f"{path}: no role speaks twice; {EDITION} is needed, with more of the plays")
    counts = [len(spoken[user]) * 4 // 5 for user in users]
    train = _tokenised([spoken[user][:count] for user, count in zip(users, counts, strict=True)])
    test = _tokenised([spoken[user][count:] for user, count in zip(users, counts, strict=True)])
    return Sequences(users, train, test)


def _tokenised(texts: Sequence[Sequence[str]]) -> Tokens:
    """Sequences of the texts of each user."""
    pieces = [[_tokens(text) for text in own] for own in texts]
    lengths = [sum(map(len, own)) for own in pieces]
    return Tokens(
        np.concatenate([piece for own in pieces for piece in own]),
        np.repeat(np.arange(len(texts), dtype=np.int32), lengths),
    )


def _tokens(text: str) -> NDArray[np.uint8]:
    """Sequences of one text; uint8 [N, 81]."""
    # TFF looks up bytes; those beyond ASCII are out of the vocabulary.
    codes = np.frombuffer(text.encode(), np.uint8)
    tokens = np.full(-(-(len(codes) + 2) // SEQUENCE) * SEQUENCE, PAD, np.uint8)
    tokens[0] = BEGIN
    tokens[1 : len(codes) + 1] = _TOKENS[codes]
    tokens[len(codes) + 1] = END
    return tokens.reshape(-1, SEQUENCE)


# ---------------------------------------------------------------------------------------------------------- where the text is


def find(root: Path, given: str | Path | None = None) -> Path:
    """Where the text is: `given` if that is set, else in `shakespeare/` of the data folder `root`, into which it is downloaded if need be.

    Args:
        root: the data folder; `shakespeare/raw_data.txt` in it takes precedence over LEAF's json in `shakespeare/`, split or not.
        given: a file with the raw text, a json file of LEAF, or a folder with either.

    Returns:
        A file with the raw text, a json file or a folder; what :func:`read` takes.

    Raises:
        UserError: nothing is at `given`, or nothing was found and the download failed.
    """
    if given is not None:
        path = Path(given).expanduser()
        require(path.exists(), f"{path}: no such file or folder; name the raw text (raw_data.txt), or a json file or folder made by LEAF")
        return _in_folder(path) or path
    return _in_folder(root / FOLDER) or download(root)


def _in_folder(folder: Path) -> Path | None:
    if (folder / RAW).is_file():
        return folder / RAW
    leaf = ("train/*.json", "test/*.json", "all_data*.json", "all_data/all_data*.json")
    return folder if any(any(folder.glob(pattern)) for pattern in leaf) else None


def read(path: Path, fraction: float = 0.9, minimum: int = 0) -> WindowSets:
    """The windows of what :func:`find` found: :func:`from_json` of a folder or a .json file, else :func:`divide` of :func:`from_raw`.

    Raises:
        UserError: as those.
    """
    if path.is_dir() or path.suffix == ".json":
        return from_json(path, fraction, minimum)
    return divide(from_raw(path), fraction, minimum)


def download(root: Path) -> Path:
    """Get the whole etext from Project Gutenberg, or from `shakespeare/1994-01-100.zip` in `root` if that is there.

    Returns:
        `shakespeare/raw_data.txt` in `root`, written atomically.

    Raises:
        UserError: no network, or the archive does not hold the whole text; nothing is written.
        OSError: the data folder cannot be written.
    """
    folder = root / FOLDER
    archive, raw = folder / ARCHIVE, folder / RAW
    by_hand = f"put {ARCHIVE} (from {ADDRESSES[-1]}), or the text in it as {RAW}, into {folder}, or name another file or folder of the text"
    if archive.is_file():
        content, source = archive.read_bytes(), str(archive)
    else:
        print(f"Shakespeare's works are not in {folder}: downloading them (2 MB)", file=sys.stderr)
        content, source = _fetch(by_hand)
    text = _unpack(content)
    fault = _fault(text)
    require(fault is None, f"{source} is not an archive of the whole etext: {fault}; {by_hand}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(raw, text)
    return raw


def _fetch(by_hand: str) -> tuple[bytes, str]:
    """An archive and its address: the first of the addresses that answers."""
    failures = []
    for address in ADDRESSES:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.read(), address
        except (OSError, HTTPException) as error:
            failures.append(" ".join(str(error).split()) or type(error).__name__)
    raise UserError(f"Shakespeare's works could not be downloaded ({'; '.join(dict.fromkeys(failures))}); {by_hand}")


def _unpack(archive: bytes) -> bytes:
    """The largest text in an archive; empty if there is none or the archive is broken."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            texts = [member for member in opened.infolist() if member.filename.lower().endswith(".txt")]
            return opened.read(max(texts, key=lambda member: member.file_size)) if texts else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError):  # the last: unknown compression, or encrypted
        return b""


def _fault(text: bytes) -> str | None:
    """Why this cannot be the whole etext (no digest of it is published); None if it may be."""
    lines = text.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        return "it holds no text, or is truncated or corrupted"
    if lines[0].strip() != FIRST_LINE:
        return f"its text does not begin with '{FIRST_LINE}'"
    if len(lines) <= LAST_LINE or not any(LAST_WORDS in line for line in lines[-20:]):
        return f"its text is cut off after {len(lines)} lines"
    return None
