"""eval.peers: tables that say what the files are, and that are not measured twice."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, features

from eval import peers
from eval.codecs.peer import PEERS, Peer
from metrics.clic import ms_ssim, squared_error
from submission.errors import UserError
from submission.files import Picture
from tests.commands import assert_refused, call
from tests.conftest import noise_picture
from tests.faults import wait_for

INSTALLED = tuple(peer for peer in PEERS if peer.version() is not None)
JPEG = dataclasses.replace(PEERS[0], qualities=(5, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(noise_picture(65, 80)).save(folder / "a.png")
    Image.fromarray(noise_picture(50, 49)).save(folder / "b.png")
    return folder


def spied(peer: Peer, compressed: list[tuple[int, int]]) -> Peer:
    """`peer`, but noting the height and the quality of everything that it compresses."""

    def compress(picture: Picture, quality: int) -> bytes:
        compressed.append((picture.shape[0], quality))
        return peer.compress(picture, quality)

    return dataclasses.replace(peer, compress=compress)


@pytest.mark.parametrize("peer", INSTALLED, ids=lambda peer: peer.name)
def test_rows_are_what_the_files_are(folder: Path, tmp_path: Path, peer: Peer) -> None:
    qualities = (peer.qualities[0], peer.qualities[-1])
    table = peers.measure(folder, tmp_path / "out", [dataclasses.replace(peer, qualities=qualities)])[peer.name]
    rows = pd.read_csv(table)
    assert list(rows.columns) == peers.COLUMNS
    assert list(zip(rows["image"], rows["quality"], strict=True)) == [
        (name, quality) for name in ("a.png", "b.png") for quality in qualities
    ]
    for row in rows.to_dict("records"):
        data = (table.parent / row["stream"]).read_bytes()
        original = np.array(Image.open(folder / row["image"]))
        picture = peer.decompress(data)
        assert row["stream"].endswith(peer.suffix)
        assert (row["height"], row["width"], 3) == original.shape == picture.shape
        assert row["bytes"] == len(data)
        assert row["msssim"] == pytest.approx(ms_ssim(original, picture), abs=1e-9)
        assert row["sse"] == squared_error(original, picture)
    by_image = rows.groupby("image")
    assert (by_image["bytes"].last() > by_image["bytes"].first()).all()
    assert (by_image["sse"].last() < by_image["sse"].first()).all()


@pytest.mark.parametrize("peer", INSTALLED, ids=lambda peer: peer.name)
def test_the_same_picture_gives_the_same_bytes(peer: Peer) -> None:
    picture = noise_picture(97, 65)
    assert peer.compress(picture, peer.qualities[3]) == peer.compress(picture, peer.qualities[3])


def test_qualities_ascend_and_names_are_unique() -> None:
    assert len({peer.name for peer in PEERS}) == len({peer.suffix for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert list(peer.qualities) == sorted(set(peer.qualities))


def test_missing_libraries_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "check", lambda library: library == "webp")
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    assert [peer.name for peer in peers.available(["jpeg", "webp", "avif", "heic", "jpegxl"])] == ["webp"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["jpeg", "heic", "jpegxl", "avif"]
    assert "heic is left out; it needs pip install pillow-heif" in said


def test_only_what_changed_is_measured_again(folder: Path, tmp_path: Path) -> None:
    compressed: list[tuple[int, int]] = []
    jpeg, out = spied(JPEG, compressed), tmp_path / "out"
    first = peers.measure(folder, out, [jpeg])["jpeg"].read_text()
    assert sorted(compressed) == [(50, 5), (50, 40), (65, 5), (65, 40)]

    compressed.clear()
    assert peers.measure(folder, out, [jpeg])["jpeg"].read_text() == first
    assert not compressed

    peers.measure(folder, out, [dataclasses.replace(jpeg, qualities=(5, 20, 40))])  # one more quality
    assert sorted(compressed) == [(50, 20), (65, 20)]

    compressed.clear()
    Image.fromarray(noise_picture(33, 34)).save(folder / "b.png")  # other content
    table = peers.measure(folder, out, [jpeg])["jpeg"]
    assert sorted(compressed) == [(33, 5), (33, 40)]

    compressed.clear()
    (table.parent / pd.read_csv(table)["stream"][0]).unlink()  # a lost stream
    peers.measure(folder, out, [jpeg])
    assert compressed == [(65, 5)]

    compressed.clear()
    (folder / "a.png").unlink()
    rows = pd.read_csv(peers.measure(folder, out, [jpeg])["jpeg"])
    assert set(rows["image"]) == {"b.png"}
    assert not compressed

    peers.measure(folder, out, [dataclasses.replace(jpeg, options="other")])  # other settings
    assert sorted(compressed) == [(33, 5), (33, 40)]


def test_an_interrupted_run_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "given_cores", lambda: 1)
    calls: list[tuple[int, int]] = []
    table = tmp_path / "cut" / "jpeg.csv"

    def compress(picture: Picture, quality: int) -> bytes:
        calls.append((picture.shape[0], quality))
        if len(calls) > 2:
            wait_for(lambda: table.read_text().count("\n") == 3)
            raise KeyboardInterrupt
        return JPEG.compress(picture, quality)

    with pytest.raises(KeyboardInterrupt):
        peers.measure(folder, tmp_path / "cut", [dataclasses.replace(JPEG, compress=compress)])
    assert len(pd.read_csv(table)) == 2
    compressed: list[tuple[int, int]] = []
    cut = peers.measure(folder, tmp_path / "cut", [spied(JPEG, compressed)])["jpeg"]
    assert len(compressed) == 2
    timed = ["encode_seconds", "decode_seconds"]
    whole = peers.measure(folder, tmp_path / "whole", [JPEG])["jpeg"]
    assert pd.read_csv(cut).drop(columns=timed).equals(pd.read_csv(whole).drop(columns=timed))


def test_bad_cells_and_names_are_named(folder: Path, tmp_path: Path) -> None:
    table = peers.measure(folder, tmp_path / "out", [JPEG])["jpeg"]
    pd.read_csv(table).assign(quality="many").to_csv(table, index=False)
    with pytest.raises(UserError, match="quality many: not a whole number"):
        peers.measure(folder, tmp_path / "out", [JPEG])
    (folder / "a.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"caf.*rename the picture"):
        peers.measure(folder, tmp_path / "new", [JPEG])


def test_a_foreign_table_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "jpeg.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"not a table of eval\.peers"):
        peers.measure(folder, tmp_path, [JPEG])
    assert (tmp_path / "jpeg.csv").read_text() == "a,b\n1,2\n"


def test_a_table_of_an_earlier_version_is_measured_anew(folder: Path, tmp_path: Path) -> None:
    table = peers.measure(folder, tmp_path, [JPEG])["jpeg"]
    pd.read_csv(table).drop(columns="decode_seconds").to_csv(table, index=False)
    compressed: list[tuple[int, int]] = []
    peers.measure(folder, tmp_path, [spied(JPEG, compressed)])
    assert len(compressed) == 4
    assert list(pd.read_csv(table).columns) == peers.COLUMNS


def test_a_picture_that_a_codec_cannot_take_is_named(folder: Path, tmp_path: Path) -> None:
    def fail(picture: Picture, quality: int) -> bytes:
        raise ValueError("encoding error 5: Image size exceeds limit")

    with pytest.raises(UserError, match=r"[ab]\.png: cannot be coded with jpeg here: encoding error 5"):
        peers.measure(folder, tmp_path / "out", [dataclasses.replace(JPEG, compress=fail)])


def test_command_refuses_bad_input(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for bad in ("empty", "nowhere"):
        assert_refused(call(peers.main, tmp_path / bad, "-o", tmp_path / "out", "--codecs", "jpeg"), bad)
    assert_refused(call(peers.main, folder, "-o", tmp_path / "out", "--codecs", "jpg"), "jpg: no such codec", "jpeg")
    assert not (tmp_path / "out").exists()
