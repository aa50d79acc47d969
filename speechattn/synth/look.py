"""The appearance of a drawn speaker. All colours are BGR, 0-255."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

# Skin, hair and eyes that go together.
_PEOPLE = (
    ((158, 186, 229), (30, 42, 66), (108, 92, 66)),
    ((128, 166, 216), (24, 25, 30), (34, 44, 62)),
    ((94, 130, 186), (22, 24, 28), (30, 40, 56)),
    ((150, 180, 224), (70, 116, 158), (118, 104, 74)),
    ((116, 152, 205), (34, 44, 78), (40, 62, 92)),
    ((72, 102, 156), (20, 22, 26), (28, 36, 50)),
    ((146, 178, 222), (72, 74, 78), (70, 98, 84)),
)
_SHIRTS = ((120, 84, 52), (62, 62, 142), (78, 104, 62), (96, 96, 98), (46, 46, 52), (150, 152, 160))
_WALLS = ((176, 132, 72), (150, 156, 160), (128, 150, 122), (112, 122, 158), (150, 128, 134))


@dataclass(frozen=True)
class Look:
    """A speaker. Lengths are pixels of a 360x288 frame in which the eyes are 49 apart."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    wall: Colour
    lip: Colour
    long_hair: bool  # it falls behind the ears to the shoulders
    hairline: float  # height above the eyes
    fringe: float  # raggedness of the hairline
    parting: float  # where the hair is parted, -1 to 1 of the half width
    width: float  # factor on the width of the head
    square: float  # 0 a pointed chin, 1 a square jaw
    nose: float  # factor on the width of the nose
    brow: float  # thickness of the eyebrows
    eye: float  # height of the open eye
    mouth: float  # half the width of the mouth at rest
    fullness: float  # factor on the thickness of the lips
    gain: float  # how far the lips move, as a factor
    scale: float  # size in the picture, 1 being 49 pixels between the eyes
    light: tuple[float, float]  # direction of the light, (x, y), the camera at (0, 0)


def random_look(rng: np.random.Generator, index: int, female: bool) -> Look:
    """Draw a speaker; `index` walks through the colours so that neighbours in a corpus differ."""

    def tint(colour, spread: float) -> Colour:
        base = np.array(colour, float) * rng.uniform(1 - spread, 1 + spread)
        return tuple(float(c) for c in np.clip(base, 8, 245))

    skin, hair, iris = _PEOPLE[index % len(_PEOPLE)]
    skin = tint(skin, 0.04)
    red = np.array([0.70, 0.62, 0.86]) if female else np.array([0.76, 0.70, 0.88])
    lip = tuple(float(c) for c in np.array(skin) * red * rng.uniform(0.95, 1.03))
    return Look(
        skin=skin,
        hair=tint(hair, 0.15),
        iris=tint(iris, 0.15),
        shirt=tint(_SHIRTS[index % len(_SHIRTS)], 0.15),
        wall=tint(_WALLS[index % len(_WALLS)], 0.12),
        lip=lip,
        long_hair=female,
        hairline=float(rng.uniform(42, 52)),
        fringe=float(rng.uniform(2, 6)),
        parting=float(rng.uniform(-0.6, 0.6)),
        width=float(rng.uniform(0.94, 1.0) if female else rng.uniform(0.98, 1.06)),
        square=float(rng.uniform(0.0, 0.45) if female else rng.uniform(0.4, 1.0)),
        nose=float(rng.uniform(0.82, 0.95) if female else rng.uniform(0.95, 1.15)),
        brow=float(rng.uniform(2.2, 3.0) if female else rng.uniform(3.2, 4.4)),
        eye=float(rng.uniform(5.2, 6.2) if female else rng.uniform(4.4, 5.4)),
        mouth=float(rng.uniform(18.5, 21.5)),
        fullness=float(rng.uniform(0.95, 1.25) if female else rng.uniform(0.78, 1.05)),
        gain=float(rng.uniform(0.88, 1.12)),
        scale=float(rng.uniform(0.94, 1.08)),
        light=(float(rng.uniform(0.15, 0.5) * rng.choice([-1, 1])), float(rng.uniform(-0.6, -0.3))),
    )
