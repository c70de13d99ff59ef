"""The same integers under every instruction set, thread count and library path that one machine can be made to take,
and for either type in which products are computed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from submission import entropy_coding, integer
from submission.ladder import Ladder
from tests.conftest import ROOT, noise_picture

#: Each forces other kernels: plain, AVX2 and AVX-512 code of ATen, oneDNN without VNNI, other BLAS, other threads.
ENVIRONMENTS = {
    "plain ATen": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 ATen, one thread": {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
    "SSE oneDNN": {"ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
    "AVX2 oneDNN without VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
    "AVX-512 oneDNN without VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OPENBLAS_CORETYPE": "SkylakeX"},
}


SIZE = (12, 16)  #: of y


#: Whether products are computed in 8-bit integers, or in floating point as on machines that are slow at these.
KINDS = {"integers": True, "floating point": False}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products are computed in this type."""
    monkeypatch.setattr(integer, "fast_int8", lambda: KINDS[request.param])
    return str(request.param)


def product(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of arrays of int8, computed as in a layer."""
    return integer.product(a, integer.operand(w))


def digest(streams: Path, fast_int8: bool) -> str:
    """Hash of every product and every clamped layer on the way of decoding the streams of a folder, each beside the
    number of its model in the ladder whose path stands in it, and of the decoded latents."""
    record = hashlib.sha256()
    compute, finish = integer.product, integer.Linear.finish

    def watched(a: np.ndarray, w: np.ndarray) -> np.ndarray:
        out = compute(a, w)
        record.update(out.tobytes())
        return out

    def watched_finish(self: integer.Linear, sums: np.ndarray) -> np.ndarray:
        out = finish(self, sums)
        record.update(out.tobytes())
        return out

    with (
        mock.patch.object(integer, "fast_int8", lambda: fast_int8),
        mock.patch.object(integer, "product", watched),
        mock.patch.object(entropy_coding, "product", watched),
        mock.patch.object(integer.Linear, "finish", watched_finish),
    ):
        for folder in sorted(p for p in streams.iterdir() if p.is_dir()):
            ladder = Ladder.load(Path((folder / "ladder").read_text()))
            for path in sorted(folder.glob("*.bin")):
                y_hat, z_hat = ladder.codec(int(path.stem)).entropy.decode(path.read_bytes(), SIZE)
                record.update(y_hat.tobytes() + z_hat.tobytes())
    return record.hexdigest()


@pytest.fixture(scope="module")
def streams(ladder_folder: Path, networks_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Entropy-coded latents of one model of the tiny ladder and of every tiny network."""
    root = tmp_path_factory.mktemp("streams")
    for name, weights, qualities in (("ladder", ladder_folder, [1]), ("networks", networks_folder, None)):
        ladder = Ladder.load(weights)
        (root / name).mkdir()
        (root / name / "ladder").write_text(str(weights))
        for quality in qualities or ladder.qualities:
            entropy = ladder.codec(quality).entropy
            rng = np.random.default_rng(0)
            y = np.rint(rng.laplace(scale=3 * entropy.unit, size=(*SIZE, entropy.config.M))).astype(np.int32)
            z = np.rint(rng.laplace(scale=3, size=(3, 4, entropy.config.N))).astype(np.int32)
            (root / name / f"{quality}.bin").write_bytes(entropy.encode(y, z)[0])
    return root


@pytest.fixture(scope="module")
def expected(streams: Path) -> str:
    return digest(streams, fast_int8=True)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_integer_is_the_same(name: str, streams: Path, expected: str) -> None:
    command = [sys.executable, "-m", "tests.test_exactness", str(streams)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[name]}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.split() == [expected] * len(KINDS)


@pytest.mark.usefixtures("kind")
def test_extreme_products_are_exact() -> None:
    """All weights and activations at their peaks, where 16-bit pairs come closest to saturation, then with a pair of
    ones among them, so that sums are odd."""
    for a_value in (-128, 127):
        for w_value in (-integer.WEIGHT_PEAK, integer.WEIGHT_PEAK):
            for n, k, m in ((1, 1, 1), (3, 7, 5), (28, 2048, 64), (28, 2304, 64), (2, 70_000, 3)):
                a, w = np.full((n, k), a_value, np.int8), np.full((k, m), w_value, np.int8)
                assert (product(a, w) == k * a_value * w_value).all()
                a[:, 0], w[0] = 1, 1
                assert (product(a, w) == (k - 1) * a_value * w_value + 1).all()


def test_floating_point_holds_every_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 as long as no sum can pass 2^24, which is 2,048 weights at their peak; float64 beyond."""
    monkeypatch.setattr(integer, "fast_int8", lambda: False)
    peaks = np.full((2049, 2), integer.WEIGHT_PEAK, np.int8)
    peaks[:, 1] = -1
    assert integer.operand(peaks[:2048]).dtype == np.float32
    assert integer.operand(peaks).dtype == np.float64
    assert integer.operand(peaks[:, 1:]).dtype == np.float32
    assert (integer.operand(peaks) == peaks).all()


def test_the_faster_type_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed anew: the cache holds the answer for a process."""
    w = np.ones((3, 4), np.int8)
    for seconds, expected in (([0.1, 0.2], np.int8), ([0.2, 0.1], np.float32)):
        times = iter(seconds)
        monkeypatch.setattr(integer, "_seconds", lambda compute, times=times: next(times))
        monkeypatch.setattr(integer, "fast_int8", integer.fast_int8.__wrapped__)
        assert integer.operand(w).dtype == expected
        monkeypatch.undo()


@pytest.mark.usefixtures("kind")
def test_numpy_gives_the_same_products() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (28, 1152)).astype(np.int8)
    w = rng.integers(-64, 65, (1152, 300)).astype(np.int8)
    expected = product(a, w)
    assert np.array_equal(expected, a.astype(np.int64) @ w.astype(np.int64))
    assert np.array_equal(expected, a.astype(np.float64) @ w.astype(np.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_products() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(-128, 128, (64, 1152)).astype(np.int8)
    w = rng.integers(-64, 65, (1152, 320)).astype(np.int8)
    on_gpu = [torch.from_numpy(v).cuda() for v in (a, w)]
    assert np.array_equal(torch._int_mm(*on_gpu).cpu().numpy(), integer.product(a, w))
    assert np.array_equal((on_gpu[0].double() @ on_gpu[1].double()).cpu().numpy(), integer.product(a, w))


@pytest.mark.usefixtures("kind")
def test_batch_shape_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (50, 384)).astype(np.int8)
    w = rng.integers(-64, 65, (384, 192)).astype(np.int8)
    whole = product(a, w)
    for size in (1, 3, 17):
        assert np.array_equal(whole, np.concatenate([product(a[k : k + size], w) for k in range(0, 50, size)]))


@pytest.mark.usefixtures("kind")
def test_threads_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(-128, 128, (500, 384)).astype(np.int8)
    w = rng.integers(-64, 65, (384, 192)).astype(np.int8)
    before = torch.get_num_threads()
    products = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        products.append(product(a, w))
    torch.set_num_threads(before)
    assert all(np.array_equal(p, products[0]) for p in products)


def test_untouched_regions_stay_the_same(ladder_folder: Path) -> None:
    """Streams do not depend on what was coded before with the same model."""
    codec = Ladder.load(ladder_folder).codec(1)
    image = noise_picture(70, 90)
    first = codec.compress(image)
    codec.compress(noise_picture(64, 200))
    assert codec.compress(image) == first


if __name__ == "__main__":
    for fast in KINDS.values():
        print(digest(Path(sys.argv[1]), fast))
