"""eval.peers: tables that say what the files are, and that are not measured twice."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval import peers
from eval.metrics import ms_ssim, squared_error
from submission.errors import UserError
from tests.conftest import noise_picture, run_module

FEW = tuple(peer for peer in peers.PEERS if peers.features.check(peer.library))


@pytest.fixture(autouse=True)
def few_qualities(monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in peers.PEERS:
        monkeypatch.setitem(peer.__dict__, "qualities", (5, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(noise_picture(65, 80)).save(folder / "a.png")
    Image.fromarray(noise_picture(50, 49)).save(folder / "b.png")
    return folder


@pytest.mark.parametrize("peer", FEW, ids=lambda peer: peer.name)
def test_rows_are_what_the_files_are(folder: Path, tmp_path: Path, peer: peers.Peer) -> None:
    table = peers.measure(folder, tmp_path / "out", [peer])[peer.name]
    rows = pd.read_csv(table)
    assert list(rows.columns) == peers.COLUMNS
    assert sorted(zip(rows["image"], rows["quality"], strict=True)) == [
        (name, quality) for name in ("a.png", "b.png") for quality in (5, 40)
    ]
    for row in rows.to_dict("records"):
        data = (table.parent / row["stream"]).read_bytes()
        original = np.array(Image.open(folder / row["image"]))
        picture = peers.decompress(data)
        assert Image.open(table.parent / row["stream"]).format.lower() == peer.name
        assert (row["height"], row["width"]) == original.shape[:2]
        assert row["bytes"] == len(data)
        assert row["msssim"] == pytest.approx(ms_ssim(original, picture), abs=1e-12)
        assert row["sse"] == squared_error(original, picture)
    sizes = rows.sort_values("quality").groupby("image")["bytes"].apply(list)
    assert all(small < large for small, large in sizes)


def test_every_peer_is_here() -> None:
    assert [peer.name for peer in peers.available()] == [peer.name for peer in FEW]
    assert {"jpeg", "webp"} <= {peer.name for peer in FEW}


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers.features, "check", lambda library: library != "avif")
    assert "avif" not in [peer.name for peer in peers.available()]
    assert "avif is left out" in capsys.readouterr().err


def test_only_what_changed_is_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = peers.PEERS[0]
    compressed: list[tuple[int, int]] = []
    compress = peers.Peer.compress

    def spy(self: peers.Peer, picture: np.ndarray, quality: int) -> bytes:
        compressed.append(picture.shape[:2])
        return compress(self, picture, quality)

    monkeypatch.setattr(peers.Peer, "compress", spy)
    out = tmp_path / "out"
    first = peers.measure(folder, out, [jpeg])["jpeg"].read_text()
    assert len(compressed) == 4

    compressed.clear()
    assert peers.measure(folder, out, [jpeg])["jpeg"].read_text() == first
    assert not compressed

    Image.fromarray(noise_picture(33, 34)).save(folder / "b.png")  # other content
    table = peers.measure(folder, out, [jpeg])["jpeg"]
    assert set(compressed) == {(33, 34)}

    compressed.clear()
    (table.parent / pd.read_csv(table)["stream"][0]).unlink()  # a lost stream
    peers.measure(folder, out, [jpeg])
    assert set(compressed) == {(65, 80)}

    compressed.clear()
    (folder / "a.png").unlink()
    rows = pd.read_csv(peers.measure(folder, out, [jpeg])["jpeg"])
    assert set(rows["image"]) == {"b.png"}
    assert not compressed

    monkeypatch.setitem(jpeg.__dict__, "options", {**jpeg.options, "progressive": False})  # other settings
    peers.measure(folder, out, [jpeg])
    assert len(compressed) == 2


def test_a_foreign_table_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "jpeg.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"not a table of eval\.peers"):
        peers.measure(folder, tmp_path, [peers.PEERS[0]])
    assert (tmp_path / "jpeg.csv").read_text() == "a,b\n1,2\n"


def test_command_refuses_bad_folders(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for bad in (empty, tmp_path / "nowhere"):
        done = run_module("eval.peers", bad, "-o", tmp_path / "out")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
