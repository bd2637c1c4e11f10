"""Ways in which a file can be spoiled from outside."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NotHere(Exception):
    """This damage cannot be done to this file, or on this machine; the text says why."""


@dataclass(frozen=True)
class Material:
    """What a damage may use. older: the file as it was earlier in the run. foreign: the same file of another run."""

    rng: random.Random
    older: Path | None
    foreign: Path | None


Damage = Callable[[Path, Material], None]


def emptied(path: Path, material: Material) -> None:
    path.write_bytes(b"")


def cut_by_a_byte(path: Path, material: Material) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_half(path: Path, material: Material) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(low: float, high: float) -> Damage:
    def flip(path: Path, material: Material) -> None:
        content = bytearray(path.read_bytes())
        if not content:
            raise NotHere("it is empty")
        content[int(len(content) * material.rng.uniform(low, high))] ^= 1 << material.rng.randrange(8)
        path.write_bytes(content)

    return flip


def tail_of_zeros(path: Path, material: Material) -> None:
    content = path.read_bytes()
    kept = len(content) * 2 // 3
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


def zeros_added(path: Path, material: Material) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


def _lines(change: Callable[[list[bytes], random.Random], list[bytes]]) -> Damage:
    def damage(path: Path, material: Material) -> None:
        before = path.read_bytes()
        after = b"".join(change(before.splitlines(keepends=True), material.rng))
        if before == after:
            raise NotHere("it has too few lines")
        path.write_bytes(after)

    return damage


def _doubled(lines: list[bytes], rng: random.Random) -> list[bytes]:
    at = rng.randrange(len(lines) or 1)
    return lines[: at + 1] + lines[at : at + 1] + lines[at + 1 :]


def _swapped(lines: list[bytes], rng: random.Random) -> list[bytes]:
    return [*lines[1::-1], *lines[2:]]


def _number_changed(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """One digit behind a point, so that what can be read stays a number, and plausible."""
    content = b"".join(lines)
    places = [match.end() for match in re.finditer(rb"\d\.\d*(?=\d)", content)]
    if not places:
        return lines
    at = rng.choice(places)
    return [content[:at], str((int(content[at : at + 1]) + 1 + rng.randrange(8)) % 10).encode(), content[at + 1 :]]


def folder_in_its_place(path: Path, material: Material) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("something")


def link_to_nowhere(path: Path, material: Material) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def pipe_in_its_place(path: Path, material: Material) -> None:
    path.unlink()
    os.mkfifo(path)


def missing(path: Path, material: Material) -> None:
    path.unlink()


def not_readable(path: Path, material: Material) -> None:
    if os.geteuid() == 0:
        raise NotHere("root reads everything")
    path.chmod(0)


def _taken(path: Path, source: Path | None, what: str) -> None:
    if source is None or not source.is_file() or source.read_bytes() == path.read_bytes():
        raise NotHere(f"there is no other {what}")
    shutil.copyfile(source, path)


def anothers(path: Path, material: Material) -> None:
    _taken(path, material.foreign, "run's file")


def link_to_anothers(path: Path, material: Material) -> None:
    if material.foreign is None or not material.foreign.is_file():
        raise NotHere("there is no other run's file")
    other = path.with_name(f"{path.name}-of-another")
    shutil.copyfile(material.foreign, other)
    path.unlink()
    path.symlink_to(other)


def older(path: Path, material: Material) -> None:
    _taken(path, material.older, "version")


def other_json(path: Path, material: Material) -> None:
    """Valid, but of another shape."""
    choices = ["{}", "[]", "null", "0", '"text"', '{"status": "finished"}', '{"status": "finished", "metrics": {}, "config": {}}', "[[1]]"]
    path.write_text(material.rng.choice(choices) + "\n")


def other_values(path: Path, material: Material) -> None:
    """A JSON object in which one value is of another type, or one key is missing."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise NotHere("it is not JSON") from error
    if not isinstance(content, dict) or not content:
        raise NotHere("it is not an object")
    _spoil(content, material.rng)
    path.write_text(json.dumps(content, indent=2) + "\n")


def status_changed(path: Path, material: Material) -> None:
    text = path.read_text()
    if '"finished"' not in text:
        raise NotHere("it has no status")
    path.write_text(text.replace('"finished"', material.rng.choice(['"diverged"', '"FINISHED"', "null", '"failed"']), 1))


def _spoil(content: dict[str, Any], rng: random.Random) -> str:
    """Remove a key, or change a value's type or shape, somewhere inside; what was done."""
    import torch

    places: list[tuple[dict[Any, Any], Any]] = []

    def collect(inside: dict[Any, Any]) -> None:
        for key, value in inside.items():
            places.append((inside, key))
            if isinstance(value, dict):
                collect(value)

    collect(content)
    holder, key = rng.choice(places)
    value = holder[key]
    if rng.random() < 0.5:
        del holder[key]
        return f"without {key}"
    if isinstance(value, torch.Tensor):
        holder[key] = value.reshape(-1)[:-1].clone() if value.numel() > 1 else torch.zeros(3)
    else:
        holder[key] = {"dict": 1} if not isinstance(value, dict) else "text"
    return f"another {key}"


def sealed_again(path: Path, material: Material) -> None:
    """A file of tensors with something missing or of another shape, and a digest that fits, as an older program might write."""
    import torch

    header, _, payload = path.read_bytes().partition(b"\n")
    digest = hashlib.sha256(payload).hexdigest().encode()
    if digest not in header:
        raise NotHere("its seal is not a SHA-256 in its first line")
    content = torch.load(io.BytesIO(payload), weights_only=True)
    _spoil(content, material.rng)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path.write_bytes(header.replace(digest, hashlib.sha256(payload).hexdigest().encode()) + b"\n" + payload)


ANY: dict[str, Damage] = {
    "emptied": emptied,
    "cut by a byte": cut_by_a_byte,
    "cut in half": cut_in_half,
    "a bit flipped at its beginning": _flip(0, 0.05),
    "a bit flipped in the middle": _flip(0.05, 0.95),
    "a bit flipped at its end": _flip(0.95, 1),
    "a tail of zeros": tail_of_zeros,
    "zeros added": zeros_added,
    "a folder in its place": folder_in_its_place,
    "a link to nowhere in its place": link_to_nowhere,
    "a pipe in its place": pipe_in_its_place,
    "another run's file": anothers,
    "a link to another run's file": link_to_anothers,
    "an older version of it": older,
    "missing": missing,
    "not readable": not_readable,
}
TEXT: dict[str, Damage] = {
    "its first line removed": _lines(lambda lines, rng: lines[1:]),
    "its last line removed": _lines(lambda lines, rng: lines[:-1]),
    "a line removed": _lines(lambda lines, rng: lines[: (at := rng.randrange(len(lines) or 1))] + lines[at + 1 :]),
    "a line doubled": _lines(_doubled),
    "a line added": _lines(lambda lines, rng: [*lines, b'{"round": 1, "samples": 5}\n']),
    "two lines swapped": _lines(_swapped),
    "a number changed": _lines(_number_changed),
    "JSON of another shape": other_json,
    "a value of another type": other_values,
    "another status": status_changed,
}
SEALED: dict[str, Damage] = {
    "sealed with other content": sealed_again,
    "sealed with other content once more": sealed_again,
    "sealed with yet other content": sealed_again,
}


def damages(kind: str) -> dict[str, Damage]:
    """Those for one kind of file."""
    return {**ANY, **({} if kind == "client state" else SEALED if kind == "checkpoint" else TEXT)}
