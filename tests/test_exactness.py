"""The same integers under every instruction set, thread count and library path that one machine can be made to take."""

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


def digest(streams: Path) -> str:
    """Hash of every product and every clamped layer on the way of decoding the streams of a folder, each beside the
    number of its model in the ladder whose path stands in it, and of the decoded latents."""
    record = hashlib.sha256()
    product, finish = integer.product, integer.Linear.finish

    def watched(a: np.ndarray, w: np.ndarray) -> np.ndarray:
        out = product(a, w)
        record.update(out.tobytes())
        return out

    def watched_finish(self: integer.Linear, sums: np.ndarray) -> np.ndarray:
        out = finish(self, sums)
        record.update(out.tobytes())
        return out

    with (
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
    return digest(streams)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_integer_is_the_same(name: str, streams: Path, expected: str) -> None:
    command = [sys.executable, "-m", "tests.test_exactness", str(streams)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[name]}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == expected


def test_extreme_products_are_exact() -> None:
    """All weights and activations at their peaks, where 16-bit pairs come closest to saturation."""
    for a_value in (-128, 127):
        for w_value in (-integer.WEIGHT_PEAK, integer.WEIGHT_PEAK):
            for n, k, m in ((1, 1, 1), (3, 7, 5), (28, 2304, 64)):
                a, w = np.full((n, k), a_value, np.int8), np.full((k, m), w_value, np.int8)
                assert (integer.product(a, w) == k * a_value * w_value).all()


def test_numpy_gives_the_same_products() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (28, 1152)).astype(np.int8)
    w = rng.integers(-64, 65, (1152, 300)).astype(np.int8)
    expected = integer.product(a, w)
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


def test_batch_shape_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (50, 384)).astype(np.int8)
    w = rng.integers(-64, 65, (384, 192)).astype(np.int8)
    whole = integer.product(a, w)
    for size in (1, 3, 17):
        assert np.array_equal(whole, np.concatenate([integer.product(a[k : k + size], w) for k in range(0, 50, size)]))


def test_threads_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(-128, 128, (500, 384)).astype(np.int8)
    w = rng.integers(-64, 65, (384, 192)).astype(np.int8)
    before = torch.get_num_threads()
    products = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        products.append(integer.product(a, w))
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
    print(digest(Path(sys.argv[1])))
