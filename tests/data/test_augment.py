"""Transforms of clips against brute force, measurements and torchaudio."""

import pickle
import random
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from speechattn.data.augment import (
    AdaptiveTimeMask,
    AddNoise,
    CenterCrop,
    ClipTransform,
    ColorJitter,
    Cutout,
    HorizontalFlip,
    RandomCrop,
    RandomRotation,
    SpeedPerturb,
    clip_generator,
    speed_audio,
    speed_video,
)
from speechattn.data.augment.base import uniforms
from speechattn.data.augment.video import change_color, rotate
from speechattn.data.batches.cut_table import id_hash


def clip(frames=30, height=96, width=96, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width), dtype=np.uint8)


def color_clip(frames=5, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, 3, height, width), dtype=np.uint8)


def sound(samples=16000, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


TRANSFORMS = [
    (RandomCrop(88), clip()),
    (CenterCrop(88), clip()),
    (HorizontalFlip(0.5), clip()),
    (RandomRotation(20.0, p=0.8), clip(5)),
    (ColorJitter(0.3, 0.3, 0.5, p=0.8), clip(5)),
    (Cutout(40, count=2, p=0.8), clip(5)),
    (Cutout(40, fill="zero"), clip(5)),
    (AdaptiveTimeMask(), clip(80)),
    (AdaptiveTimeMask(rate=16000, fill="zero"), sound()),
    (AddNoise(sound(5000, 1), (0.0, 10.0), p=0.7, babble=3), sound()),
    (SpeedPerturb(), sound()),
]
NAMES = [type(t).__name__ for t, _ in TRANSFORMS]


@pytest.mark.parametrize("transform, x", TRANSFORMS, ids=NAMES)
def test_seed_decides_all(transform, x):
    """Same seed, same result; numpy or torch alike; nothing global is touched; input stays."""
    x.flags.writeable = False  # as a memory-mapped store hands it out
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    results = []
    for seed in range(8):
        first = transform(x, clip_generator(seed))
        assert isinstance(first, np.ndarray) and first.dtype == x.dtype
        np.testing.assert_array_equal(first, transform(x, clip_generator(seed)))
        np.testing.assert_array_equal(
            first, pickle.loads(pickle.dumps(transform))(x, clip_generator(seed))
        )
        tensor = torch.from_numpy(x.copy())
        other = transform(tensor, clip_generator(seed))
        assert isinstance(other, torch.Tensor) and other.dtype == tensor.dtype
        np.testing.assert_array_equal(first, other.numpy())
        np.testing.assert_array_equal(tensor.numpy(), x)
        results.append(first.tobytes())
    if not isinstance(transform, CenterCrop):
        assert len(set(results)) > 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_clip_generator_tells_keys_apart():
    def draw(*keys):
        return torch.rand(4, generator=clip_generator(*keys)).tolist()

    assert draw(0, 1, "s1_a") == draw(0, 1, "s1_a")
    keys = [(0, 1, "a"), (1, 0, "a"), (0, 1, "b"), (0, 11, "a"), (0, 1, 1, "a"), ("0\x001", "a")]
    assert len({tuple(draw(*k)) for k in keys}) == len(keys)


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = clip_generator(3, 0, f"clip{index}")
        x = AdaptiveTimeMask()(RandomCrop(20)(clip(30, 24, 24), generator), generator)
        y = AddNoise(sound(3000, 1), p=0.5)(sound(4000), generator)
        return torch.from_numpy(x.copy()), torch.from_numpy(y)


def test_workers_do_not_change_the_draws():
    alone, shared = (list(DataLoader(Clips(), num_workers=n)) for n in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


# ------------------------------------------------------------------------------------- video


def test_crops():
    x = clip(4, 11, 12)
    seen = set()
    for seed in range(400):
        y = RandomCrop(8)(x, clip_generator(seed))
        assert y.shape == (4, 8, 8)
        (place,) = [
            (i, j)
            for i in range(4)
            for j in range(5)
            if np.array_equal(y, x[:, i : i + 8, j : j + 8])
        ]
        seen.add(place)
    assert len(seen) == 20  # every place, the last row and column too
    np.testing.assert_array_equal(CenterCrop(8)(x), x[:, 1:9, 2:10])
    assert CenterCrop()(clip()).shape == RandomCrop(88)(clip(), clip_generator(0)).shape
    for transform in (RandomCrop(12), CenterCrop(12)):
        with pytest.raises(ValueError, match="11x12 have no 12x12"):
            transform(x, clip_generator(0))
    assert RandomCrop(11)(x[:, :, :11], clip_generator(0)).shape == (4, 11, 11)


def test_flip():
    x = clip(3)
    for p, share in ((0.0, 0), (1.0, 200), (0.5, 100)):
        results = [HorizontalFlip(p)(x, clip_generator(i)) for i in range(200)]
        flipped = [np.array_equal(y, x[:, :, ::-1]) for y in results]
        assert all(f or np.array_equal(y, x) for f, y in zip(flipped, results, strict=True))
        assert abs(sum(flipped) - share) <= (30 if p == 0.5 else 0)


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(16),
        HorizontalFlip(1.0),
        RandomRotation(20.0),
        ColorJitter(0.0, 0.0, 0.5),
        AdaptiveTimeMask(masks_per_second=25),
        Cutout(12, fill="zero", p=1.0),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_colors_are_treated_alike(transform):
    """A colour clip is what its colours are as grey clips; only means are of all colours."""
    x = color_clip()
    y = transform(x, clip_generator(2))
    planes = [transform(x[:, c], clip_generator(2)) for c in range(3)]
    np.testing.assert_array_equal(y, np.stack(planes, axis=1))
    assert y.dtype == np.uint8 and (y.shape != x.shape or (y != x).any())
    view = x[..., 2:, 3:]  # not contiguous, as behind a crop
    np.testing.assert_array_equal(
        transform(view, clip_generator(5)), transform(view.copy(), clip_generator(5))
    )


def test_only_bytes():
    for transform in (HorizontalFlip(1.0), RandomRotation(), ColorJitter(), Cutout(p=1.0)):
        with pytest.raises(TypeError, match="uint8"):
            transform(clip().astype(np.float32), clip_generator(0))


def bilinear(image, y, x):
    """Grey at a place between pixels; outside, that of the nearest pixel of the edge."""
    height, width = image.shape
    low_y, low_x = int(np.floor(y)), int(np.floor(x))
    total = 0.0
    for i in (low_y, low_y + 1):
        for j in (low_x, low_x + 1):
            weight = (1 - abs(y - i)) * (1 - abs(x - j))
            total += weight * image[np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]
    return total


@pytest.mark.parametrize("degrees", [0.0, 7.3, -20.0, 90.0])
@pytest.mark.parametrize("height, width", [(15, 15), (16, 13)])
def test_rotation(degrees, height, width):
    x = clip(2, height, width).astype(np.float64)
    kernel = np.ones(3) / 3
    for axis in (1, 2, 1, 2):  # smooth, so that a 32nd of a pixel is little
        x = np.apply_along_axis(np.convolve, axis, x, kernel, "same")
    x = x.round().astype(np.uint8)
    y = rotate(x, degrees)
    angle, middle = np.radians(degrees), ((height - 1) / 2, (width - 1) / 2)
    for frame, turned in zip(x, y, strict=True):
        for i in range(height):
            for j in range(width):
                dy, dx = i - middle[0], j - middle[1]
                # Where the pixel came from: turned back, with rows that go down.
                source_y = middle[0] + np.cos(angle) * dy + np.sin(angle) * dx
                source_x = middle[1] + np.cos(angle) * dx - np.sin(angle) * dy
                assert abs(turned[i, j] - bilinear(frame, source_y, source_x)) <= 2.5
    if degrees == 90.0 and height == width:
        np.testing.assert_array_equal(y, np.rot90(x, axes=(1, 2)))
    if degrees == 0.0:
        np.testing.assert_array_equal(y, x)


def test_rotation_of_a_frame_does_not_depend_on_the_others():
    x = clip(9, 30, 34)
    for count in range(1, 10):
        together = rotate(x[:count], 11.0)
        alone = np.concatenate([rotate(x[i : i + 1], 11.0) for i in range(count)])
        np.testing.assert_array_equal(together, alone)


def test_angles():
    """Uniform, either way, as often as asked for, and the same in all frames."""
    ramp = np.arange(64, dtype=np.uint8)[None, :, None] * 3 + np.zeros((2, 64, 64), np.uint8)
    slopes = []
    for seed in range(300):
        y = RandomRotation(15.0, p=0.6)(ramp, clip_generator(seed)).astype(float)
        np.testing.assert_array_equal(y[0], y[1])
        down = (y[0, 42, 32] - y[0, 22, 32]) / 20
        right = (y[0, 32, 42] - y[0, 32, 22]) / 20
        slopes.append(np.degrees(np.arctan2(right, down)))
    slopes = np.array(slopes)
    turned = slopes[np.abs(slopes) > 0.3]
    assert 0.5 < len(turned) / 300 < 0.7
    assert turned.min() < -13 and turned.max() > 13 and np.abs(turned).max() < 15.5
    assert abs(turned.mean()) < 2


@pytest.mark.parametrize("brightness, contrast, gamma", [(1, 1, 1), (0.7, 1, 1), (1.3, 1, 1),
    (1, 0.5, 1), (1, 1.5, 1), (1, 1, 0.6), (1, 1, 1.8), (1.2, 0.8, 1.3)])  # fmt: skip
@pytest.mark.parametrize("make", [clip, color_clip])
def test_colors(brightness, contrast, gamma, make):
    x = make(3, 6, 7)
    y = change_color(x, brightness, contrast, gamma)
    mean = float(Fraction(int(x.astype(int).sum()), x.size))
    for was, is_now in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True):
        value = min(max((mean + contrast * (was - mean)) * brightness, 0.0), 255.0)
        assert abs(is_now - 255.0 * (value / 255.0) ** gamma) <= 0.5 + 1e-9


def test_colors_drawn():
    x = np.full((1, 4, 4), 100, np.uint8)
    bright = [ColorJitter(0.2, 0, 0)(x, clip_generator(i))[0, 0, 0] for i in range(300)]
    assert min(bright) == 80 and max(bright) == 120 and abs(np.mean(bright) - 100) < 2
    gamma = [ColorJitter(0, 0, 0.5)(x, clip_generator(i))[0, 0, 0] / 255 for i in range(300)]
    exponents = np.log(gamma) / np.log(100 / 255)
    assert 1 / 1.5 - 0.01 < exponents.min() < 0.7 and 1.45 < exponents.max() < 1.51
    assert abs(np.median(exponents) - 1) < 0.08
    some = [ColorJitter(p=0.3)(clip(1), clip_generator(i)) for i in range(200)]
    assert 40 < sum((y != clip(1)).any() for y in some) < 80
    assert ColorJitter()(x[:0], clip_generator(0)).shape == (0, 4, 4)
    for wrong in ({"brightness": 1.5}, {"contrast": -0.1}, {"gamma": -1}):
        with pytest.raises(ValueError, match="must be in 0..1"):
            ColorJitter(**wrong)


@pytest.mark.parametrize("make", [clip, color_clip])
def test_cutout(make):
    x = make(3, 20, 24)
    axes = (0, 1, 2) if x.ndim == 3 else (0, 2, 3)
    mean = np.rint(x.mean(axes)).reshape((-1, 1, 1) if x.ndim == 4 else ())
    covered, sides = np.zeros((20, 24)), set()
    for seed in range(400):
        y = Cutout(9, p=1.0)(x, clip_generator(seed))
        masked = (y == mean).reshape(-1, 20, 24).all(0)
        np.testing.assert_array_equal(y[..., ~masked], x[..., ~masked])
        rows, columns = np.flatnonzero(masked.any(1)), np.flatnonzero(masked.any(0))
        if len(rows) == 0:
            continue
        assert masked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        if rows[0] > 0 and rows[-1] < 19 and columns[0] > 0 and columns[-1] < 23:
            assert len(rows) == len(columns)  # a square, unless it reaches beyond an edge
            sides.add(len(rows))
        covered += masked
    assert sides == set(range(1, 10))
    assert covered.min() > 0
    assert Cutout(count=0)(x, clip_generator(0)) is x
    share = np.mean([Cutout(p=0.5)(x, clip_generator(i)) is x for i in range(300)])
    assert 0.4 < share < 0.6
    with pytest.raises(ValueError, match="size 0"):
        Cutout(0)


@pytest.mark.parametrize("frames, masks", [(1, 1), (5, 1), (25, 1), (26, 2), (75, 3), (130, 6)])
def test_adaptive_time_mask(frames, masks):
    x = clip(frames, 3, 5)
    mean = np.array(
        [[round(Fraction(int(x[:, i, j].sum()), frames)) for j in range(5)] for i in range(3)]
    )
    covered = np.zeros(frames)
    widest = 0
    for seed in range(300):
        y = AdaptiveTimeMask()(x, clip_generator(seed))
        masked = (y == mean).all((1, 2))
        np.testing.assert_array_equal(y[~masked], x[~masked])
        runs = np.flatnonzero(np.diff(np.r_[0, masked, 0])).reshape(-1, 2)
        assert len(runs) <= masks
        assert masked.sum() <= 10 * masks
        widest = max(widest, *(b - a for a, b in runs), 0)
        covered += masked
    assert covered.min() > 0  # both ends as well
    assert widest >= min(10, frames)


def test_adaptive_time_mask_options():
    x = clip(100, 2, 2)
    assert AdaptiveTimeMask(masks_per_second=0)(x, clip_generator(0)) is x
    assert AdaptiveTimeMask(max_seconds=0)(x, clip_generator(0)) is x
    empty = x[:0]
    assert len(AdaptiveTimeMask()(empty, clip_generator(0))) == 0
    zero = AdaptiveTimeMask(fill="zero")(x, clip_generator(1))
    changed = (zero != x).any((1, 2))
    assert changed.any() and (zero[changed] == 0).all()
    wave = AdaptiveTimeMask(0.1, 2.0, 16000)(sound(), clip_generator(1))
    assert 0 < (wave != sound()).sum() <= 2 * 1600


# ------------------------------------------------------------------------------------- sound


def measured_snr(clean, noisy):
    noise = noisy.astype(np.float64) - clean
    return 10 * np.log10(np.sum(clean.astype(np.float64) ** 2) / np.sum(noise**2))


@pytest.mark.parametrize("snr", [-10.0, 0.0, 12.5, 20.0])
@pytest.mark.parametrize("length", [400, 16000, 50001])
@pytest.mark.parametrize("babble", [1, 4])
def test_snr_is_exact(snr, length, babble):
    clean, noise = sound(length), sound(7000, 5) * 3 + 0.01
    noisy = AddNoise(noise, (snr, snr), p=1.0, babble=babble)(clean, clip_generator(length))
    assert noisy.shape == clean.shape
    assert measured_snr(clean, noisy) == pytest.approx(snr, abs=1e-3)


def test_snr_range_and_probability():
    clean, transform = sound(2000), AddNoise(sound(9000, 2), (-5.0, 15.0), p=0.25)
    results = [transform(clean, clip_generator(i)) for i in range(400)]
    noisy = [y for y in results if y is not clean]
    assert 70 < len(noisy) < 130
    ratios = np.array([measured_snr(clean, y) for y in noisy])
    assert -5.001 <= ratios.min() < -3 and 13 < ratios.max() <= 15.001
    assert 3 < ratios.mean() < 7


def test_noise_is_an_excerpt_that_goes_round():
    clean, noise = sound(500), sound(300, 3)
    starts = set()
    for seed in range(50):
        added = AddNoise(noise, (0.0, 0.0), p=1.0)(clean, clip_generator(seed)) - clean
        rolled = np.stack([np.resize(np.roll(noise, -k), 500) for k in range(300)])
        similar = rolled @ added / np.linalg.norm(rolled, axis=1) / np.linalg.norm(added)
        assert similar.max() > 0.9999
        starts.add(int(similar.argmax()))
    assert len(starts) > 30


def test_noise_from_files(tmp_path):
    paths = []
    for index, rate in enumerate((16000, 8000)):
        paths.append(tmp_path / f"{index}.wav")
        time = np.arange(rate) / rate
        soundfile.write(paths[-1], 0.3 * np.sin(2 * np.pi * (500 + 1000 * index) * time), rate)
    clean, peaks = sound(16000), set()
    for seed in range(12):
        added = AddNoise(paths, (0.0, 0.0), 1.0)(clean, clip_generator(seed)) - clean
        peaks.add(int(np.abs(np.fft.rfft(added)).argmax()))
    assert peaks == {500, 1500}  # both files; the second resampled
    one = AddNoise(str(paths[0]), (5.0, 5.0), 1.0)(clean, clip_generator(0))
    assert measured_snr(clean, one) == pytest.approx(5, abs=1e-3)


def test_silence_stays():
    silent, clean = np.zeros(100, np.float32), sound(100)
    for x, noise in ((silent, clean), (clean, silent)):
        y = AddNoise(noise, (0.0, 0.0), p=1.0)(x, clip_generator(0))
        np.testing.assert_array_equal(y, x)
    with pytest.raises(ValueError, match="snr_db"):
        AddNoise(clean, (5.0, 0.0))


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.95, 1.25])
def test_speed_audio(factor):
    samples = 16000
    time = np.arange(samples) / 16000
    y = speed_audio(np.sin(2 * np.pi * 400 * time).astype(np.float32), factor)
    assert abs(len(y) - samples / factor) <= 1
    spectrum = np.abs(np.fft.rfft(y * np.hanning(len(y)), 1 << 18))
    assert spectrum.argmax() * 16000 / (1 << 18) == pytest.approx(400 * factor, abs=0.5)
    # The same curve, read faster
    inner = np.arange(200, len(y) - 200)
    ideal = np.sin(2 * np.pi * 400 * inner / 16000 * factor)
    assert np.abs(y[inner] - ideal).max() < 0.01


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_audio_is_torchaudios(factor):
    functional = pytest.importorskip("torchaudio.functional")
    x = torch.from_numpy(sound(12345))
    peer = functional.resample(x, round(16000 * factor), 16000)
    torch.testing.assert_close(speed_audio(x, factor), peer, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", ["0.9", "1.0", "1.1", "0.5", "2.0", "1.37"])
@pytest.mark.parametrize("frames", [1, 2, 7, 74, 75, 250])
def test_speed_video(factor, frames):
    exact = Fraction(factor)
    y = speed_video(np.arange(frames), float(factor))
    assert abs(len(y) - frames / exact) <= Fraction(1, 2) or len(y) == 1
    for index, shown in enumerate(y):
        middle = (index + Fraction(1, 2)) * exact  # in frames of the source
        assert shown == min(int(middle), frames - 1)
    pictures = clip(frames, 4, 4)
    np.testing.assert_array_equal(speed_video(pictures, float(factor)), pictures[y])
    assert torch.equal(
        speed_video(torch.from_numpy(pictures), float(factor)).cpu(), torch.from_numpy(pictures[y])
    )


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_sound_and_lips_stay_together(factor):
    """A click and a flash at the same moment are at the same moment afterwards."""
    for frame in (3, 30, 71):
        frames = np.zeros((75, 2, 2), np.uint8)
        frames[frame - 1 : frame + 2] = 255
        samples = np.zeros(48000, np.float32)
        samples[frame * 640 : (frame + 1) * 640] = np.hanning(640)
        flash = np.flatnonzero(speed_video(frames, factor)[:, 0, 0]).mean() + 0.5
        click = speed_audio(samples, factor).argmax() / 640
        assert abs(flash - click) <= 1


def test_speed_perturb():
    perturb = SpeedPerturb()
    drawn = [perturb.draw(clip_generator(i)) for i in range(300)]
    assert all(70 < drawn.count(f) < 130 for f in (0.9, 1.0, 1.1))
    x = sound(1000)
    assert {len(perturb(x, clip_generator(i))) for i in range(20)} == {1000, 1112, 910}
    assert speed_audio(x, 1.0) is x
    for function in (speed_audio, speed_video):
        with pytest.raises(ValueError, match="must be positive"):
            function(x, 0.0)


def test_speeds_of_many_clips():
    """Known at once for all clips, whatever their order; even; other in each epoch."""
    hashes = np.array([id_hash(f"clip{i}") for i in range(3000)], dtype=np.uint64)
    perturb = SpeedPerturb((0.9, 1.0, 1.1))
    first = perturb.draws(hashes, 5, 0, 0)
    np.testing.assert_array_equal(perturb.draws(hashes[::-1], 5, 0, 0), first[::-1])
    assert perturb.draws(hashes[7:8], 5, 0, 0) == first[7]
    for keys in ((5, 0, 0), (5, 1, 0), (6, 0, 0), (5, 0, 1)):
        drawn = perturb.draws(hashes, *keys)
        assert all(900 < (drawn == factor).sum() < 1100 for factor in (0.9, 1.0, 1.1))
        if keys != (5, 0, 0):  # independent: equal for a third of them
            assert 0.29 < (drawn == first).mean() < 0.38


def test_uniforms():
    """Even over the whole range, also for hashes that differ in one bit alone."""
    draws = uniforms(np.arange(100_000, dtype=np.uint64), 3, "key")
    assert draws.min() >= 0.0 and draws.max() < 1.0
    counts = np.histogram(draws, 50, (0.0, 1.0))[0]
    assert ((counts - 2000.0) ** 2 / 2000.0).sum() < 100  # chi-square of 49 degrees, p < 1e-4
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01


def test_built_from_yaml(tmp_path):
    """Constructors are annotated well enough for jsonargparse."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=list[ClipTransform])
    names = {
        "RandomCrop": {"size": 80},
        "CenterCrop": {},
        "HorizontalFlip": {"p": 0.3},
        "AdaptiveTimeMask": {"max_seconds": 0.2, "fill": "zero"},
        "AddNoise": {"noise": "babble.flac", "snr_db": [-5, 20], "babble": 2},
        "SpeedPerturb": {"factors": [0.8, 1.2]},
        "RandomRotation": {"degrees": 5, "p": 0.5},
        "ColorJitter": {"brightness": 0.1, "gamma": 0},
        "Cutout": {"size": 20, "fill": "zero"},
    }
    config = [
        {"class_path": f"speechattn.data.augment.{name}", "init_args": args}
        for name, args in names.items()
    ]
    config.append(
        {
            "class_path": "speechattn.data.augment.AddNoise",
            "init_args": {"noise": ["a.wav", "b.wav"]},
        }
    )
    built = parser.instantiate(parser.parse_object({"transforms": config})).transforms
    assert [type(t).__name__ for t in built] == [*names, "AddNoise"]
    assert built[0].size == 80
    assert built[4].noise == ["babble.flac"] and tuple(built[4].snr_db) == (-5, 20)
    assert list(built[-1].noise) == ["a.wav", "b.wav"]
    assert built[5].factors == (0.8, 1.2)
