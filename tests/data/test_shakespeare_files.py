"""Shakespeare's files: LEAF's json, what is refused, downloads, and the real text."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.data import shakespeare_text
from fl_hydra.data.shakespeare_text import (
    ADDRESSES,
    BEGIN,
    END,
    LAST_LINE,
    LAST_WORDS,
    PAD,
    UNKNOWN,
    decode,
    download,
    find,
    from_json,
    from_raw,
    read,
    sequences,
    split,
)
from fl_hydra.errors import UserError
from tests.support.etext import (
    EXPECTED,
    PLAYS,
    SHARED,
    as_leaf,
    etext,
    leaf_split,
    make_texts,
    strings,
    texts,
    user_data,
    windows_of,
    write_sets,
)


@pytest.mark.parametrize("extra", [0, 79])
def test_sets_that_leaf_has_split(tmp_path: Path, extra: int) -> None:
    """LEAF's script counts the 79 windows that it leaves out as test samples; files that were set right are read too."""
    written = make_texts(0)
    train, test = leaf_split({user: windows_of(text) for user, text in reversed(written.items())})
    samples = from_json(write_sets(tmp_path, train, test, extra))
    assert samples.users == ("user0", "user1", "user2")
    assert strings(samples, samples.train) == train
    assert strings(samples, samples.test) == test
    assert decode(samples.characters) == "".join(written.values()), "every character is stored once"


def test_the_raw_text_and_both_kinds_of_json_give_the_same(tmp_path: Path, write: Callable[..., Path]) -> None:
    speech = "\n    ".join(f"line {i} of so many that there is a test set, {i * i}" for i in range(40))
    raw = write(("PLAY", f"  B. {speech}\n  C. Hm.\n  A. {speech[::-1].replace(chr(10), '')}\n    a\n    b\n"))
    by_user = {user: windows_of(text) for user, text in texts(raw).items()}
    assert len(by_user) == 2
    (tmp_path / "all_data").mkdir()
    (tmp_path / "all_data" / "all_data.json").write_text(as_leaf(by_user))
    split_folder = write_sets(tmp_path / "split", *leaf_split(by_user), extra=79)
    expected = read(raw)
    assert len(expected.test) > 0
    for path in (tmp_path / "all_data", tmp_path / "all_data" / "all_data.json", tmp_path, split_folder):
        samples = read(path)
        assert samples.users == expected.users
        np.testing.assert_array_equal(samples.characters, expected.characters)
        for name in ("train", "test"):
            np.testing.assert_array_equal(getattr(samples, name).starts, getattr(expected, name).starts)
            np.testing.assert_array_equal(getattr(samples, name).users, getattr(expected, name).users)


def test_windows_in_any_order(tmp_path: Path) -> None:
    """LEAF's iid sampling: windows of all roles, drawn without order, for users that are numbers; the split goes by position."""
    pool = [window for text in make_texts(1).values() for window in windows_of(text)]
    random.Random(2).shuffle(pool)
    users = {"0": pool[:1000], "1": pool[1000:1900], "10": pool[1900:2010]}
    path = tmp_path / "all_data_iid_01_1.json"
    path.write_text(as_leaf(users))
    samples = from_json(path)
    assert samples.users == ("0", "1")
    assert strings(samples, samples.train) == {"0": users["0"][:900], "1": users["1"][:810]}
    assert strings(samples, samples.test) == {"0": users["0"][979:], "1": users["1"][889:]}


def test_gaps_start_afresh_and_what_follows_is_shared(tmp_path: Path) -> None:
    windows = windows_of(make_texts(3)["user0"])
    train, test = windows[:5] + windows[7:10] + windows[3:4], windows[700:702]
    samples = from_json(write_sets(tmp_path, {"a": train}, {"a": test}))
    assert strings(samples, samples.train) == {"a": train}
    assert strings(samples, samples.test) == {"a": test}
    assert len(samples.characters) in ((85 + 83 + 81) + 82, (85 + 83 + 81) + 81), "the last of one set may be the first of the other"


def test_a_window_that_overlaps_but_for_its_target_starts_afresh(tmp_path: Path) -> None:
    (x, _), second = windows_of("a" * 40 + "b" * 42)
    samples = from_json(write_sets(tmp_path, {"a": [(x, "z"), second]}, {"a": [second]}))
    assert strings(samples, samples.train) == {"a": [(x, "z"), second]}


def test_the_split_by_user(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(4).items()}
    train, test = {u: written[u] for u in ("user2", "user0")}, {"user1": written["user1"]}
    samples = from_json(write_sets(tmp_path, train, test))
    assert samples.users == ("user0", "user1", "user2")
    assert strings(samples, samples.train) == train
    assert strings(samples, samples.test) == test


def test_users_in_several_files(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(5).items()}
    for i, user in enumerate(reversed(written)):
        (tmp_path / f"all_data_{i}.json").write_text(as_leaf({user: written[user]}))
    assert from_json(tmp_path).users == tuple(written)
    assert from_json(tmp_path, minimum=1000).users == ("user0", "user2")
    (tmp_path / "all_data_3.json").write_text(as_leaf({"user1": written["user1"]}))
    with pytest.raises(UserError, match=r"all_data_3\.json: the user user1 is there twice, or in another file too"):
        from_json(tmp_path)


def test_empty_entries_of_dropped_users_are_nothing(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(6).items()}
    path = tmp_path / "all_data.json"
    path.write_text(as_leaf(written, user_data={**user_data(written), "dropped": {"x": [], "y": []}}))
    assert from_json(path).users == tuple(written)


# Errors


def one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(error.value)
    assert ";" in str(error.value), "what was wrong; what to do"


GOOD = windows_of(make_texts(7)["user0"])[:3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (as_leaf({"u": GOOD})[:-40], "is truncated or corrupted"),
        ("\x80\x81", "is truncated or corrupted"),
        ("[1, 2]", "has no list 'users'"),
        ('{"users": ["u"], "user_data": {}}', "has no list 'num_samples'"),
        ('{"users": ["u"], "num_samples": [3]}', "has no dictionary 'user_data'"),
        (as_leaf({"u": GOOD}, users=[3]), "its users are not all names"),
        (as_leaf({"u": GOOD}, users=["u", "v"]), "it names 2 users, but gives num_samples of 1"),
        (as_leaf({"u": GOOD}, users=["v"]), "the user v is named twice, or has no user_data"),
        (as_leaf({"u": GOOD}, users=["u", "u"], num_samples=[3, 3]), "the user u is named twice"),
        (as_leaf({"u": GOOD}, num_samples=[4]), "num_samples of the user u is 4, but its user_data holds 3"),
        (as_leaf({"u": GOOD}, extra=79), "num_samples of the user u is 82, but its user_data holds 3"),
        (as_leaf({"u": GOOD}, users=[], num_samples=[]), "user_data holds u, which is none of its users"),
        (as_leaf({"u": GOOD}, user_data={"u": [1]}), "user_data of u has no lists x and y"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": []}}), "user_data of u has 1 x, but 0 y"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": [[0.5] * 784], "y": [3]}}), "another task of LEAF: x of u holds a list"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": [["12", "a tweet"]], "y": ["0"]}}), "another task of LEAF: x of u holds a list"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a.png"], "y": [1]}}), "x of u holds a string of 5, where strings of 80 characters"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": [1]}}), "y of u holds a int, where strings of 1 character are needed"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": ["ab"]}}), "y of u holds a string of 2"),
        (as_leaf({"u": [("é" * 80, "a")]}), "x of u holds 'é', which is none of the 80 characters"),
        (as_leaf({"u": [("a" * 80, "“")]}), "y of u holds '“', which is none of the 80 characters"),
        (as_leaf({"u": [("a" * 80, "{")]}), "y of u holds '{', which is none of the 80 characters"),
        (as_leaf({}), "holds no window"),
        (as_leaf({"u": []}), "holds no window"),
        (as_leaf({"u": GOOD}), "none of the 1 users has"),
    ],
)
def test_json_that_is_no_good(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "all_data.json"
    path.write_bytes(content.encode("latin-1") if content == "\x80\x81" else content.encode())
    with pytest.raises(UserError, match=re.escape(says)) as error:
        from_json(path)
    one_line(error)
    assert str(path) in str(error.value) or "none of the 1 users" in says


def test_sets_that_are_not_both_there(tmp_path: Path) -> None:
    folder = write_sets(tmp_path, {"u": GOOD}, {"u": GOOD})
    file = folder / "train" / "all_data_niid_1_keep_0_train_9.json"
    for half in (file, folder / "train"):
        with pytest.raises(UserError, match=f"is one of two sets; name the folder .* {re.escape(str(folder))}$") as error:
            from_json(half)
        one_line(error)
    (folder / "test" / "all_data_niid_1_keep_0_test_9.json").write_text(as_leaf({"u": []}))
    with pytest.raises(UserError, match="test holds no window") as error:
        from_json(folder)
    one_line(error)
    (folder / "test" / "all_data_niid_1_keep_0_test_9.json").unlink()
    with pytest.raises(UserError, match=r"has no test/\*.json beside the other set") as error:
        from_json(folder)
    one_line(error)
    file.unlink()
    for missing, says in ((folder, "holds neither"), (folder / "nothing.json", "no such file or folder")):
        with pytest.raises(UserError, match=says) as error:
            from_json(missing)
        one_line(error)


def test_texts_that_are_no_good(write: Callable[..., Path], tmp_path: Path) -> None:
    def refused(path: Path, says: str, reader: Callable[[Path], object] = from_raw) -> None:
        with pytest.raises(UserError, match=re.escape(says)) as error:
            reader(path)
        one_line(error)
        assert str(path) in str(error.value)

    path = write(*PLAYS)
    content = path.read_text()
    path.write_text("The Project Gutenberg EBook of the Complete Works\n" + content)
    refused(path, "is another text")
    refused(path, "is another text", sequences)
    path.write_bytes(b"")
    refused(path, "is another text")
    path.write_text(content[: content.index("VALENTINE")])
    refused(path, "no play was found")
    path.write_text(content[: content.index("THE TWO")])
    refused(path, "no play was found")
    path.write_text(content.replace("my loving", "my {loving}"))
    refused(path, "the text of THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE holds '{'")
    path.write_text(content.replace("my loving", "my “loving”"), encoding="utf-8")
    refused(path, "the text of THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE holds '“'")
    path.write_text(content[: content.index("  SPEED")].replace("VALENTINE. Cease", "LAUNCE. Cease"))
    refused(path, "no role speaks twice", sequences)
    refused(tmp_path / "nothing.txt", "no such file")
    refused(tmp_path, "cannot be read")
    refused(tmp_path, "has no borders of speeches", sequences)


# Download


def whole() -> str:
    start = etext(*PLAYS)
    return start + "\n" * (LAST_LINE + 200 - start.count("\n")) + LAST_WORDS + "\n\n\n"


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("read.me", "x" * 9999)
        file.writestr("small.txt", "x")
        file.writestr("100.txt", text)
    return buffer.getvalue()


def marked(served: bytes, offset: int, value: int) -> bytes:
    """An archive with a byte of each member's entry in its directory changed; `offset` counts from the entry's begin."""
    return b"PK\x01\x02".join(
        part if number == 0 else part[: offset - 4] + bytes([value]) + part[offset - 3 :]
        for number, part in enumerate(served.split(b"PK\x01\x02"))
    )


def test_a_download_is_unpacked_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served.zip"
    served.write_bytes(archive(whole()))
    monkeypatch.setattr(shakespeare_text, "ADDRESSES", ((tmp_path / "moved.zip").as_uri(), served.as_uri()))
    root = tmp_path / "data"
    assert find(root) == root / "shakespeare" / "raw_data.txt"
    assert texts(find(root)) == EXPECTED
    assert [path.name for path in (root / "shakespeare").iterdir()] == ["raw_data.txt"]
    served.unlink()
    assert find(root) == root / "shakespeare" / "raw_data.txt", "without a second download"


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, timeout: float) -> None:
        assert address in ADDRESSES and 0 < timeout <= 60
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded .*Name or service.*; put 1994-01-100.zip .* raw_data.txt, into") as error:
        find(tmp_path)
    one_line(error)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "1994-01-100.zip").write_bytes(archive(whole()))
    assert texts(find(tmp_path)) == EXPECTED, "an archive that was put there is as good"


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (b"<html>not found</html>", "it holds no text, or is truncated"),
        (archive(whole())[:-100], "it holds no text, or is truncated"),
        pytest.param(marked(archive(whole()), 8, 1), "it holds no text, or is truncated", id="encrypted"),
        pytest.param(marked(archive(whole()), 10, 99), "it holds no text, or is truncated", id="compressed in an unknown way"),
        (archive("The Project Gutenberg EBook\n" + whole()), "does not begin with"),
        (archive(whole()[:-70]), "is cut off after"),
        (archive(etext(*PLAYS) + LAST_WORDS), "is cut off after"),
    ],
)
def test_what_is_not_the_whole_etext_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: bytes, says: str) -> None:
    (tmp_path / "served.zip").write_bytes(served)
    monkeypatch.setattr(shakespeare_text, "ADDRESSES", ((tmp_path / "served.zip").as_uri(),))
    with pytest.raises(UserError, match=says) as error:
        download(tmp_path / "data")
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_where_the_text_is_looked_for(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shakespeare_text, "download", lambda root: root / "downloaded")
    root = tmp_path / "data"
    assert find(root) == root / "downloaded"
    folder = write_sets(root / "shakespeare", {"u": GOOD}, {"u": GOOD})
    assert find(root) == folder
    raw = write(*PLAYS)
    (folder / "raw_data.txt").write_bytes(raw.read_bytes())
    assert find(root) == folder / "raw_data.txt"
    assert find(root, raw) == raw
    assert find(root, str(raw.parent)) == raw
    assert find(root, folder / "train") == folder / "train"
    with pytest.raises(UserError, match="no such file or folder") as error:
        find(root, tmp_path / "nothing")
    one_line(error)


# The real text


@pytest.fixture
def real(tmp_path: Path) -> Path:
    packed = SHARED / "shakespeare" / "raw_data.txt.gz"
    if not packed.exists():
        pytest.skip(f"needs the real text, which is not in {SHARED} (set FL_HYDRA_SHARED to the folder above data)")
    path = tmp_path / "real.txt"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def test_the_real_text(real: Path) -> None:
    """Numbers and digest are of texts that LEAF's own scripts made of the same file, and of LEAF's rule for the split."""
    corpus = from_raw(real)
    counts = corpus.window_counts()
    assert (len(corpus.users), counts.sum(), (counts >= 2000).sum()) == (639, 2_245_559, 230)
    digest = hashlib.sha256()
    for u, (user, n) in enumerate(zip(corpus.users, counts.tolist(), strict=True)):
        train_count, test_start = split(n)
        digest.update(f"{user}\0{corpus.text(u)}\0{train_count}\0{test_start}\n".encode())
    assert digest.hexdigest() == "8c1f7a57b41829a20b48ab744420967f8c198e3dd9b307728fd5260a5a65aa96"


def test_sequences_of_the_real_text(real: Path) -> None:
    made = sequences(real)
    for part in (made.train, made.test):
        assert np.unique(part.users).tolist() == list(range(len(made.users))), "every user is in both sets"
        assert (part.tokens == BEGIN).sum() == (part.tokens == END).sum() > 0
        assert (part.tokens == UNKNOWN).mean() < 1e-4
        assert not (part.tokens[:, 0] == PAD).any(), "no piece is padding only"
