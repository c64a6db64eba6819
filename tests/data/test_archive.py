"""Archives put files into their folder and nothing else anywhere."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

import data.archive
from data.archive import unpack
from utils.errors import UserError


def write_tar(path: Path, *members: tarfile.TarInfo, mode: str = "w", content: bytes = b"boo") -> Path:
    with tarfile.open(path, mode) as archive:
        for member in members:
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_archive_is_unpacked(tmp_path, suffix):
    mode = f"w:{suffix.removeprefix('tar').removeprefix('.')}"
    path = write_tar(tmp_path / f"a.{suffix}", member("a", tarfile.DIRTYPE), member("a/b.txt"), mode=mode)
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"boo"


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_members_outside_their_folder_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, "boo")
    write_tar(tmp_path / "bad.tar", member(name))
    for kind in ("zip", "tar"):
        with pytest.raises(UserError, match="outside the archive"):
            unpack(tmp_path / f"bad.{kind}", tmp_path / kind)
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    """A link may be to a place that the next member then writes to."""
    (tmp_path / "victim").mkdir()
    path = write_tar(tmp_path / "bad.tar", member("a", kind, str(tmp_path / "victim")), member("a/b.txt"))
    with pytest.raises(UserError, match="its member a is a link or a device"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "victim").iterdir()) and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_bombs_are_refused_before_they_are_on_the_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(data.archive, "ALWAYS", 1_000_000)
    path, zeros = tmp_path / f"bomb.{kind}", bytes(30_000_000)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", zeros)
    else:
        write_tar(path, member("a"), mode=f"w:{kind[4:]}", content=zeros)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"refused: its 0\.0 MB unpack to 30 MB or more"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def header(name: str, kind: bytes, size: int) -> bytes:
    """Of a tar archive; `tarfile` itself writes no size that cannot be."""
    made = bytearray(member(name, kind).tobuf(tarfile.GNU_FORMAT))
    made[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    made[148:156] = b" " * 8
    made[148:156] = f"{sum(made[:512]):06o}\0 ".encode()
    return bytes(made)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [-512, 1 << 40])
def test_headers_that_claim_any_size_are_refused(tmp_path, kind, size):
    (tmp_path / "bad.tar").write_bytes(header("a", kind, size) + bytes(2048))
    with pytest.raises(UserError, match=r"bad\.tar"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")


UNPACK = "from pathlib import Path; from data.archive import unpack; from utils.errors import UserError"


def test_an_archive_that_leads_back_is_refused(tmp_path, limited):
    """Of a member of negative size, `tarfile` takes the one that it has just read for the next, without end."""
    first = header("a", tarfile.REGTYPE, 0)
    for name, kind, size in (("same", tarfile.REGTYPE, -512), ("first", tarfile.REGTYPE, -1024),
                             ("sparse", tarfile.GNUTYPE_SPARSE, -512), ("folder", tarfile.DIRTYPE, -512),
                             ("pax", tarfile.XHDTYPE, -512), ("long", tarfile.GNUTYPE_LONGNAME, -512)):  # fmt: skip
        (tmp_path / f"{name}.tar").write_bytes(first + header("b", kind, size) + bytes(20_000))
    said = limited(UNPACK, f"""
for file in Path({str(tmp_path)!r}).glob("*.tar"):
    try:
        unpack(file, file.with_suffix(""))
    except UserError as error:
        print(error)
""")  # fmt: skip
    assert sorted(line.partition(".tar: ")[0] for line in said.splitlines()) == [
        "first", "folder", "long", "pax", "same", "sparse"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_that_are_deeper_than_functions_for_folders_follow_are_refused(tmp_path, kind):
    deep, fair = "a/" * 1000 + "b.txt", "a/" * 49 + "b.txt"
    for name, path in ((deep, tmp_path / f"deep.{kind}"), (fair, tmp_path / f"fair.{kind}")):
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(name, "boo")
        else:
            write_tar(path, member(name))
    unpack(tmp_path / f"fair.{kind}", tmp_path / "fair")
    with pytest.raises(
        UserError, match=rf"deep\.{kind}: refused: its member .* lies 1001 folders deep, expected at most"
    ):
        unpack(tmp_path / f"deep.{kind}", tmp_path / "deep")
    assert (tmp_path / "fair" / fair).is_file() and not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(("most", "folder"), [("MOST_MEMBERS", "a"), ("MOST_FOLDERS", "{}")])
def test_members_and_folders_are_counted(tmp_path, monkeypatch, kind, most, folder):
    """Empty ones take no room that would count."""
    names = [f"{folder}/{{}}.txt".format(*[index] * 2) for index in range(8)]
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "")
    write_tar(tmp_path / "many.tar", *map(member, names), content=b"")
    monkeypatch.setattr(data.archive, most, 10)
    unpack(tmp_path / f"many.{kind}", tmp_path / "few")
    monkeypatch.setattr(data.archive, most, 7)
    with pytest.raises(UserError, match=rf"many\.{kind}: refused: more than .*7 "):
        unpack(tmp_path / f"many.{kind}", tmp_path / "out")


BROKEN = (b"not an archive", b"", b"PK\x05\x06" + bytes(18), b"\x1f\x8b" + bytes(50), bytes(1024))


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_archive_is_an_error_of_one_line_or_is_empty(tmp_path, content):
    (tmp_path / "bad.zip").write_bytes(content)
    try:
        unpack(tmp_path / "bad.zip", tmp_path / "out")
    except UserError as error:
        assert str(error).startswith("bad.zip: cannot be unpacked") and "\n" not in str(error)
    assert not list((tmp_path / "out").iterdir())


def test_a_member_that_stands_in_another_s_way_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("a", "boo")
        archive.writestr("a/b", "boo")
    with pytest.raises(UserError, match=r"bad\.zip: cannot be unpacked"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")
