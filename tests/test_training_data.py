"""Training pictures: what is left out, the cache, copies of evaluation pictures, crops."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from submission.errors import UserError
from submission.files import Picture, read_image
from tests.conftest import noise_picture
from tests.training_kit import CPU, RECIPE, photos
from training.data import pictures as data
from training.data.crops import Crops, centre_crops, gather, random_places
from training.data.pictures import load_pictures
from training.data.similar import find_copies, fingerprint, fingerprints
from training.network.device import World


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(noise_picture(200, 220, k)).save(folder / f"good{k}.png")
    return folder


def test_broken_and_small_pictures_are_counted_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise_picture(30, 200)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "nowhere.png").symlink_to(folder / "nothing")
    (folder / "folder.png").mkdir()
    pictures = load_pictures([folder], 192, tmp_path)
    assert len(pictures.train) + len(pictures.validation) == 4 and len(pictures.validation)
    text = capsys.readouterr().err
    assert "left out 2 pictures, unreadable: broken.png, nowhere.png" in text
    assert "left out 1 pictures, smaller than 192: small.png (200x30)" in text
    with pytest.raises(UserError, match="usable"):
        load_pictures([folder], 500, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_pictures([tmp_path / "none"], 192, tmp_path)


def test_a_second_start_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_pictures([folder], 192, tmp_path)
    decoded: list[Path] = []

    def watched(path: Path) -> Picture:
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr(data, "read_image", watched)
    second = load_pictures([folder], 192, tmp_path)
    assert not decoded and torch.equal(first.pixels, second.pixels)
    assert np.array_equal(first.train, second.train) and np.array_equal(first.validation, second.validation)
    Image.fromarray(noise_picture(200, 220, 9)).save(folder / "good1.png")  # other content
    os.utime(folder / "good1.png", (1, 1))
    assert not torch.equal(load_pictures([folder], 192, tmp_path).pixels, first.pixels) and decoded


def test_a_torn_cache_is_made_again(folder: Path, tmp_path: Path) -> None:
    first = load_pictures([folder], 192, tmp_path).pixels.clone()
    (samples,) = tmp_path.glob("pictures-*.u8")
    samples.write_bytes(samples.read_bytes()[:-1])
    assert torch.equal(load_pictures([folder], 192, tmp_path).pixels, first)
    (index,) = tmp_path.glob("pictures-*.json")
    index.write_text(index.read_text()[:-5])
    assert torch.equal(load_pictures([folder], 192, tmp_path).pixels, first)
    assert not list(tmp_path.glob("*.part"))


def smooth(seed: int, height: int = 300, width: int = 400) -> Image.Image:
    """A picture with a spectrum like a photo's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_known_again(seed: int, tmp_path: Path) -> None:
    """The same pixels, half the size, twice the size, bad JPEG, WebP; and other pictures are no copies."""
    original = smooth(seed)
    theirs = [fingerprint(np.asarray(original))]
    made = [original.copy(), original.resize((200, 150)), original.resize((801, 599))]
    for k, (form, quality) in enumerate((("JPEG", 20), ("WEBP", 30))):
        original.save(tmp_path / str(k), form, quality=quality)
        made.append(Image.open(tmp_path / str(k)).convert("RGB"))
    assert find_copies([fingerprint(np.asarray(p)) for p in made], theirs) == dict.fromkeys(range(5), 0)
    others = [fingerprint(np.asarray(smooth(100 * seed + k))) for k in range(1, 40)]
    assert find_copies(others, theirs) == {}


def test_copies_are_known_mirrored_and_rotated(tmp_path: Path) -> None:
    original = smooth(3)
    original.save(tmp_path / "original.png")
    theirs = [found for _, found in fingerprints([tmp_path / "original.png"])]
    for transform in Image.Transpose:
        copy = original.transpose(transform).resize((350, 280))
        assert find_copies([fingerprint(np.asarray(copy))], theirs), transform
    assert not find_copies([fingerprint(np.asarray(smooth(k))) for k in range(4, 40)], theirs)


def test_excluded_pictures_do_not_slip_in(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    smooth(1).save(evaluation / "lighthouse.png")
    smooth(1, 240, 320).save(folder / "holiday.jpg", quality=70)
    pictures = load_pictures([folder], 192, tmp_path, [evaluation])
    assert len(pictures.train) + len(pictures.validation) == 4
    assert "excluded as copies: holiday.jpg (as lighthouse.png)" in capsys.readouterr().err
    everything = load_pictures([folder], 192, tmp_path)
    assert len(everything.train) + len(everything.validation) == 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures there"):
        load_pictures([folder], 192, tmp_path, [tmp_path / "empty"])


def test_crops_are_pieces_of_the_pictures() -> None:
    """Every crop lies in a training picture, mirrored or not."""
    pictures = photos()
    whole = [pictures.pixels[s : s + 3 * h * w].reshape(h, w, 3) for s, h, w in pictures.train.tolist()]
    mirrored = set()
    for step in range(8):
        places = random_places(pictures.train, 2, 192, 1, step)
        for (start, row, mirror, _), crop in zip(places.tolist(), gather(pictures.pixels, places, 192), strict=True):
            picture = whole[start // (3 * 200 * 210)]
            top, left = divmod((start % (3 * 200 * 210)) // 3, 210)
            piece = picture[top : top + 192, left : left + 192].permute(2, 0, 1)
            assert row == 3 * 210 and torch.equal(crop, piece.flip(2) if mirror else piece)
            mirrored.add(mirror)
    assert mirrored == {0, 1}


def test_a_share_of_the_crops_is_of_pictures_at_half_their_size() -> None:
    picture = noise_picture(130, 140, 3)
    pictures = data.Pictures.of([picture, noise_picture(100, 100, 4)], [picture])
    means = picture.astype(np.float64)[:130, :140].reshape(65, 2, 70, 2, 3).mean((1, 3))
    halved = 0
    for step in range(20):
        places = random_places(pictures.train, 2, 64, 1, step, half=0.5)
        for (start, row, mirror, scale), crop in zip(places.tolist(), gather(pictures.pixels, places, 64), strict=True):
            assert scale == 1 or start < picture.size  # the small picture has no such crops
            halved += scale == 2
            if scale == 2 and (start // 3 % 140) % 2 == 0 and (start // row) % 2 == 0:
                top, left = start // row // 2, start // 3 % 140 // 2
                piece = means[top : top + 64, left : left + 64].transpose(2, 0, 1)
                assert np.abs(crop.numpy() - (piece[:, :, ::-1] if mirror else piece)).max() <= 0.5
    assert 8 <= halved <= 24
    assert all(random_places(pictures.train, 2, 64, 1, step)[:, 3].max() == 1 for step in range(20))
    (whole,) = centre_crops(pictures, 64, 16, scale=2)
    middle = picture[1:129, 6:134].astype(np.float64).reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(whole.numpy() - middle.transpose(2, 0, 1)).max() <= 0.5


def test_validation_on_a_folder_of_its_own(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of --data is trained on, but for copies of what is validated on."""
    apart = tmp_path / "apart"
    apart.mkdir()
    smooth(1).save(apart / "lighthouse.png")
    smooth(1, 240, 320).save(folder / "holiday.jpg", quality=70)
    pictures = load_pictures([folder], 192, tmp_path, validate=[apart])
    assert len(pictures.train) == 4 and pictures.validation[:, 1:].tolist() == [[300, 400]]
    assert "holiday.jpg (as lighthouse.png)" in capsys.readouterr().err
    (apart / "broken.png").write_bytes(b"no picture")
    pictures = load_pictures([folder], 192, tmp_path, validate=[apart])
    assert len(pictures.train) == 4 and len(pictures.validation) == 1
    assert "unreadable: broken.png" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: 0 usable pictures"):
        load_pictures([folder], 192, tmp_path, validate=[tmp_path / "empty"])


def test_centre_crops_are_of_held_out_pictures() -> None:
    (crop,) = centre_crops(photos(), 192, 16)
    assert np.array_equal(crop.permute(1, 2, 0).numpy(), noise_picture(200, 200, 9)[4:196, 4:196])


def test_crops_depend_on_seed_and_step_alone() -> None:
    places = photos().train
    a = random_places(places, 2, 192, 1, 5)
    assert torch.equal(a, random_places(places, 2, 192, 1, 5))
    assert not torch.equal(a, random_places(places, 2, 192, 1, 6))
    assert not torch.equal(a, random_places(places, 2, 192, 2, 5))


def test_processes_share_the_crops_of_one() -> None:
    stage = RECIPE.stage("main")
    whole = Crops(photos(), stage, CPU).at(3)
    parts = [Crops(photos(), stage, CPU, World(rank, 2)).at(3) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)
