"""From phones in time to the shape of the mouth in every video frame.

A phone has a target pose and says how strongly it insists on each part of it; neighbouring phones
blend by dominance functions, so a vowel rounds the /s/ before it while a /b/ closes the lips
whatever stands around it. After Cohen and Massaro, "Modeling coarticulation in synthetic visual
speech" (1993). Sounds that differ only behind the lips (p b m, f v, t d n, k g ng) share one pose:
lips tell less than the voice.
"""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from speechattn.synth.speech import Phone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pose:
    """A mouth."""

    jaw: float = 0.0  # drop of the chin, 0 to 1
    # gap between the lips, 0 to 1; a target below 0 closes them firmly and for longer
    opening: float = 0.0
    width: float = 0.0  # corners of the mouth, -1 drawn in to 1 spread
    rounding: float = 0.0  # lips pursed and pushed out, 0 to 1
    tuck: float = 0.0  # lower lip under the upper teeth, 0 to 1
    press: float = 0.0  # lips rolled in upon each other, 0 to 1
    teeth: float = 0.3  # upper teeth seen, 0 to 1
    lower_teeth: float = 0.0  # lower teeth seen, 0 to 1
    tongue: float = 0.2  # height of the tongue in the mouth, 0 to 1
    tip: float = 0.0  # tongue tip, 0 down, 0.5 up behind the teeth, 1 between them.


PARAMETERS = tuple(f.name for f in fields(Pose))
_LOWEST = np.array([-1.0 if name == "width" else 0.0 for name in PARAMETERS])


@dataclass(frozen=True)
class Viseme:
    """A target and how strongly it is held."""

    pose: Pose  # the target
    lips: float = 0.6  # weight on jaw, opening, tuck and press
    shape: float = 0.5  # weight on width and rounding
    inside: float = 0.6  # weight on teeth and tongue
    # least time that the articulators are in place, seconds; it reaches back before the sound, as a
    # closure comes before its burst
    hold: float = 0.0


_GROUP = {"width": 1, "rounding": 1, "teeth": 2, "lower_teeth": 2, "tongue": 2, "tip": 2}
_REACH = np.array([[0.030, 0.070, 0.035][_GROUP.get(n, 0)] for n in PARAMETERS])  # seconds

REST = Viseme(Pose(teeth=0.2, jaw=0.03), lips=0.8, shape=0.3, inside=0.3)
_BILABIAL = Viseme(Pose(opening=-0.35, press=1.0, jaw=0.05), lips=4.0, shape=0.1, hold=0.070)
_LABIODENTAL = Viseme(
    Pose(opening=0.12, jaw=0.05, tuck=1.0, teeth=1.0, width=0.1), 4.0, 0.2, 4.0, hold=0.085
)
_DENTAL = Viseme(Pose(0.22, 0.30, 0.15, teeth=0.7, tongue=0.8, tip=1.0), 1.6, 0.3, 5.0, hold=0.080)
_ALVEOLAR = Viseme(Pose(0.12, 0.22, 0.15, teeth=0.8, tongue=0.6, tip=0.5), 0.5, 0.12, 0.8)
_LATERAL = Viseme(Pose(0.24, 0.34, 0.10, teeth=0.7, tongue=0.8, tip=0.7), 0.9, 0.15, 2.5, 0.05)
_SIBILANT = Viseme(Pose(0.03, 0.17, 0.45, teeth=1.0, lower_teeth=1.0, tongue=0.1), 2.5, 0.35, 2.5)
_HUSHED = Viseme(
    Pose(0.05, 0.26, -0.2, rounding=0.55, teeth=1.0, lower_teeth=0.9), 1.4, 1.2, 2.5, hold=0.06
)
_PALATAL = Viseme(Pose(0.05, 0.18, 0.60, teeth=0.9, lower_teeth=0.8, tongue=0.4), 1.1, 0.6, 2.0)
_RETROFLEX = Viseme(Pose(0.06, 0.22, 0.0, rounding=0.30, teeth=0.9, lower_teeth=0.7), 1.2, 0.7, 2.0)
_VELAR = Viseme(Pose(0.18, 0.24, 0.05, teeth=0.4, tongue=0.3), 0.15, 0.05, 0.3)
_GLIDE_R = Viseme(Pose(0.10, 0.20, -0.2, rounding=0.60, teeth=0.4, tongue=0.3), 0.9, 1.2, 0.6)
_GLIDE_W = Viseme(
    Pose(0.08, 0.13, -0.6, rounding=1.0, teeth=0.0, tongue=0.1), 2.0, 2.5, 1.0, hold=0.06
)


def _vowel(jaw: float, opening: float, width: float, rounding: float, *rest: float) -> Viseme:
    teeth, tongue = rest
    pose = Pose(jaw, opening, width, rounding, teeth=teeth, tongue=tongue)
    return Viseme(pose, lips=0.9, shape=0.5 + 1.1 * rounding + 0.4 * max(width, 0.0))


_SPREAD = _vowel(0.12, 0.26, 0.90, 0.00, 0.8, 0.5)
_NEAR_SPREAD = _vowel(0.20, 0.32, 0.55, 0.00, 0.7, 0.45)
_MID_FRONT = _vowel(0.42, 0.50, 0.50, 0.00, 0.6, 0.4)
_LOW_FRONT = _vowel(0.72, 0.76, 0.40, 0.00, 0.6, 0.4)
_LOW_BACK = _vowel(0.90, 0.90, 0.00, 0.05, 0.35, 0.30)
_LOW_ROUND = _vowel(0.66, 0.66, -0.25, 0.50, 0.2, 0.15)
_MID_ROUND = _vowel(0.36, 0.44, -0.50, 0.80, 0.1, 0.15)
_NEAR_CLOSE_ROUND = _vowel(0.18, 0.24, -0.45, 0.75, 0.1, 0.15)
_CLOSE_ROUND = _vowel(0.15, 0.27, -0.70, 1.00, 0.0, 0.15)
_FRONT_ROUND = _vowel(0.10, 0.14, -0.60, 0.95, 0.3, 0.45)
_CENTRAL = _vowel(0.30, 0.38, 0.10, 0.00, 0.5, 0.3)
_BACK_SPREAD = _vowel(0.32, 0.36, 0.35, 0.00, 0.5, 0.25)
_BUZZED = _vowel(0.06, 0.18, 0.40, 0.00, 0.9, 0.3)

_TABLE: dict[str, Viseme] = {}
for _phones, _viseme in (
    ("p b m", _BILABIAL),
    ("f v", _LABIODENTAL),
    ("θ ð", _DENTAL),
    ("t d n ɾ", _ALVEOLAR),
    ("l ɫ", _LATERAL),
    ("s z ts dz", _SIBILANT),
    ("ʃ ʒ tʃ dʒ", _HUSHED),
    ("ɕ ʑ tɕ dʑ ç", _PALATAL),
    ("ʂ ʐ tʂ dʐ ɻ", _RETROFLEX),
    ("k g ŋ x χ h ʔ c", _VELAR),
    ("ɹ r", _GLIDE_R),
    ("w ɥ", _GLIDE_W),
    ("i j", _SPREAD),
    ("ɪ", _NEAR_SPREAD),
    ("e ɛ", _MID_FRONT),
    ("æ a", _LOW_FRONT),
    ("ɑ", _LOW_BACK),
    ("ɐ ʌ", _vowel(0.52, 0.58, 0.10, 0.0, 0.5, 0.25)),
    ("ɒ", _LOW_ROUND),
    ("o ɔ", _MID_ROUND),
    ("ʊ", _NEAR_CLOSE_ROUND),
    ("u", _CLOSE_ROUND),
    ("y ø œ", _FRONT_ROUND),
    ("ə ɜ ɚ ɝ", _CENTRAL),
    ("ɤ ɯ", _BACK_SPREAD),
    ("ɨ ɿ ʅ", _BUZZED),
):
    for _phone in _phones.split():
        _TABLE[_phone] = _viseme

_warned: set[str] = set()


def visemes_of(symbol: str) -> list[Viseme]:
    """List the poses of a phone: one, two or three of a diphthong, [REST] of a pause.

    A letter of the IPA that has no pose takes the neutral vowel's, and is logged once.
    """
    poses, i = [], 0
    while i < len(symbol):
        phone = symbol[i : i + 2] if symbol[i : i + 2] in _TABLE else symbol[i]
        if phone not in _TABLE and phone not in _warned:
            _warned.add(phone)
            message = "no mouth shape for phone %r (in %r): drawn as a neutral vowel"
            logger.warning(message, phone, symbol)
        poses.append(_TABLE.get(phone, _CENTRAL))
        i += len(phone)
    return poses or [REST]


def mouth_track(phones: Sequence[Phone], times: np.ndarray, pause: float = 0.08) -> np.ndarray:
    """Compute the mouth at given times.

    Args:
        phones: in order; before the first and after the last the mouth rests.
        times: (T,) seconds.
        pause: pauses shorter than this, in seconds, do not bring the mouth to rest.

    Returns:
        (T, P) float64, the columns being `PARAMETERS`, within their ranges.
    """
    sounding = [p for p in phones if p.symbol]
    if not sounding:
        return np.repeat([astuple(REST.pose)], len(times), axis=0)
    spans = [(-np.inf, sounding[0].start - 0.10, REST)]
    for phone in phones:
        if not phone.symbol and phone.end - phone.start < pause:
            continue
        poses = visemes_of(phone.symbol)
        edges = np.linspace(phone.start, phone.end, len(poses) + 1)
        for viseme, start, end in zip(poses, edges, edges[1:], strict=False):
            spans.append((min(start, end - viseme.hold), end, viseme))
    spans.append((sounding[-1].end + 0.12, np.inf, REST))

    start, end = (np.array([s[i] for s in spans])[:, None] for i in (0, 1))
    targets = np.array([astuple(v.pose) for *_, v in spans])  # (S, P)
    weights = np.array(
        [[(v.lips, v.shape, v.inside)[_GROUP.get(n, 0)] for n in PARAMETERS] for *_, v in spans]
    )
    outside = np.maximum(np.maximum(start - times, times - end), 0.0)  # (S, T) seconds
    nearest = outside.min(axis=0)  # far from every span the nearest decides, not 0 / 0
    reach = (outside**2 - nearest**2)[:, :, None] / _REACH**2
    dominance = weights[:, None] * np.exp(-reach)  # (S, T, P)
    track = (dominance * targets[:, None]).sum(axis=0) / dominance.sum(axis=0)
    return np.clip(track, _LOWEST, 1.0)
