"""Wiping and collecting against trees that were made to resist."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from supervisor import artifacts, reset
from supervisor.fault import Fault

pytestmark = pytest.mark.skipif(
    os.getuid() != 0, reason="other people's files are needed, and removing them takes root"
)
UID = 1_499_999_999


def wipe(folder: pathlib.Path, seconds: float = 10) -> None:
    reset.wipe(str(folder), mode=0o755, deadline=time.monotonic() + seconds)


def test_resistant_tree_is_gone_and_links_are_not_followed(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    top = tmp_path / "top"
    top.mkdir()
    for name in (b"new\nline", b"-rf", b".hidden", b"bytes-\xff\xfe", b"x" * 255, b"sp ace"):
        (pathlib.Path(os.fsdecode(os.path.join(os.fsencode(top), name)))).write_text("x")
    os.symlink("/", top / "root")
    os.symlink(outside, top / "link")
    os.symlink(outside, top / "dangling-later")
    os.mkfifo(top / "fifo")
    deep = os.open(top, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    locked = top / "locked"
    (locked / "inner").mkdir(parents=True)
    (locked / "inner" / "file").write_text("x")
    for path in (locked / "inner" / "file", locked / "inner", locked, top):
        os.chown(path, UID, UID)
        path.chmod(0o1000 if path.is_dir() else 0)
    wipe(top)
    assert os.listdir(top) == []
    assert (top.stat().st_uid, top.stat().st_mode) == (0, 0o40755)
    assert (outside / "kept").read_text() == "kept"


def test_many_files_are_wiped_fast(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "top"
    for folder in range(16):
        (top / f"{folder}").mkdir(parents=True)
        for number in range(1000):
            os.close(os.open(top / f"{folder}" / f"{number}", os.O_CREAT | os.O_WRONLY))
    wipe(top, seconds=5)
    assert os.listdir(top) == []


def test_deadline_is_a_reason_to_give_up(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    with pytest.raises(Fault, match="wipe_slow"):
        wipe(top, seconds=-1)


def test_folder_that_was_replaced_by_a_link_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "top").symlink_to("/etc")
    with pytest.raises(Fault, match="mount_lost"):
        wipe(tmp_path / "top")


def collect(folder: pathlib.Path, globs: tuple[str, ...] = ()) -> tuple[dict[str, bytes], int]:
    collection = artifacts.Collection(str(folder), UID, globs)
    found = {file.name: os.read(file.fd, file.size) for file in collection.files()}
    return found, collection.skipped


def test_only_own_regular_files_of_wanted_types_are_collected(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("root's")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in (
        "good.csv",
        "UPPER.PNG",
        "no.sh",
        "none",
        ".hidden.csv",
        "-dash.csv",
        "new\nline.csv",
        "quote'.csv",
        "a.csv.exe",
    ):
        (folder / name).write_text("x")
        os.chown(folder / name, UID, UID)
    (folder / "roots.csv").write_text("x")
    os.link(secret, folder / "hard.csv")
    os.symlink(secret, folder / "soft.csv")
    os.mkfifo(folder / "fifo.csv")
    (folder / "sub.csv").mkdir()
    found, skipped = collect(folder)
    assert found == {"good.csv": b"x", "UPPER.PNG": b"x"}
    assert skipped == 12
    assert collect(folder, ("no*",))[0] == {"no.sh": b"x", "none": b"x"}


def test_number_and_size_of_artifacts_are_bounded(tmp_path: pathlib.Path) -> None:
    for number in range(15):
        (tmp_path / f"f{number:02}.csv").write_text("row")
    with (tmp_path / "0-sparse.csv").open("wb") as file:
        file.truncate(1 << 42)
    for path in tmp_path.iterdir():
        os.chown(path, UID, UID)
    found, skipped = collect(tmp_path)
    assert sorted(found) == [f"f{number:02}.csv" for number in range(10)]
    assert skipped == 6


def test_artifacts_folder_that_is_a_link_is_not_followed_in_gvisor(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, O_NOFOLLOW does nothing beside O_DIRECTORY: what is in /etc was counted as artifacts that were not sent."""
    folder = tmp_path / "artifacts"
    folder.symlink_to("/etc")
    opens_as_told = os.open

    def opens(path: str, flags: int, **more: int) -> int:
        return opens_as_told(path, flags & ~os.O_NOFOLLOW if flags & os.O_DIRECTORY else flags, **more)

    monkeypatch.setattr("supervisor.artifacts.os.open", opens)
    assert collect(folder, ("*",)) == ({}, 0)


@pytest.mark.parametrize("kind", ["link", "file", "absent"])
def test_artifacts_folder_that_is_none_gives_nothing(tmp_path: pathlib.Path, kind: str) -> None:
    folder = tmp_path / "artifacts"
    if kind == "link":
        folder.symlink_to("/etc")
    elif kind == "file":
        folder.write_text("x")
    assert collect(folder, ("*",)) == ({}, 0)
