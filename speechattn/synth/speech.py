"""Speech from eSpeak NG through ctypes, with the time of every phone and word.

The library and its data come from the registry package `espeakng-loader`, so nothing has to be
compiled or installed by root. eSpeak keeps its state in globals and its callback is not re-entrant:
use it from one thread of a process; several processes are fine.

Source: https://github.com/espeak-ng/espeak-ng, `src/include/espeak-ng/speak_lib.h` (its constants
and structures are copied here by hand). eSpeak NG is licensed under the GPLv3.
"""

import _ctypes
import ctypes
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.errors import ConfigError, missing_extra

_AUDIO_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA = 1, 2
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4
_POSITION_CHARACTER = 1
_UTF8, _PHONEMES = 0x1, 0x100
_IPA_LENGTH = 8  # bytes that an event has for the phone's name
_LOUDNESS = 70  # of 200; louder ones clip with some variants
_LANGUAGES = {"en": "gmw/en", "cmn": "sit/cmn"}  # voice files below espeak-ng-data/lang


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("string", ctypes.c_char * _IPA_LENGTH)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_SYNTH_ARGUMENTS = [  # text, size, position, its unit, end position, flags, identifier, user data
    ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
    ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
]  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """A speaker's voice."""

    language: str = "en"  # 'en' (British) or 'cmn' (Mandarin)
    variant: str = "m3"  # an eSpeak voice variant such as 'm3' or 'f2'
    pitch: int = 50  # base pitch, 0 to 100, 50 being the variant's own
    pitch_range: int = 50  # liveliness of the pitch, 0 to 100
    rate: int = 160  # speed in words a minute, 80 to 450


@dataclass(frozen=True)
class Phone:
    """A phone in IPA without stress and length marks ('' is a pause), `start` to `end` seconds."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class Word:
    """A word as written in the transcript, `start` to `end` in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """Synthesised speech."""

    samples: np.ndarray  # (N,) float32 in [-1, 1]
    sample_rate: int  # Hz (22050 for eSpeak)
    phones: tuple[Phone, ...]  # contiguous, in order, inside the audio
    words: tuple[Word, ...]  # one for each word asked for, in order


class Synthesiser:
    """eSpeak NG in this process. Only one may be in use at a time.

    Raises:
        ConfigError: `espeakng-loader` is missing, or the library does not start.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise missing_extra("synth", "eSpeak NG (espeakng-loader, GPLv3)") from error
        self._path = str(espeakng_loader.get_library_path())
        self._data = str(espeakng_loader.get_data_path()).encode()

    def speak(
        self, words: Sequence[str], voice: Voice, spoken: Sequence[str] | None = None
    ) -> Speech:
        """Say a sentence.

        Args:
            words: the words as the transcript writes them; no white space inside a word.
            voice: who says it.
            spoken: what to give eSpeak for each word where that differs (`[[...]]` holds eSpeak
                phoneme names, as for the letter A, which it would read as the article).

        Raises:
            ConfigError: an unknown voice, or eSpeak merged or dropped a word.
        """
        spoken = list(words if spoken is None else spoken)
        space = "" if voice.language == "cmn" else " "
        library, rate = self._start(voice)
        try:
            samples, events = _run(library, space.join(spoken))
        finally:
            _stop(library)
        total = len(samples) / rate
        phones = _phones(events, rate, total)
        starts = np.cumsum([0] + [len(s) + len(space) for s in spoken])[:-1] + 1  # from 1
        return Speech(samples, rate, phones, _words(words, starts, events, phones, rate=rate))

    def _start(self, voice: Voice) -> tuple[ctypes.CDLL, int]:
        if voice.language not in _LANGUAGES:
            raise ConfigError(f"language {voice.language!r}: choose from {sorted(_LANGUAGES)}")
        library = ctypes.CDLL(self._path)
        library.espeak_Synth.argtypes = _SYNTH_ARGUMENTS
        events = _PHONEME_EVENTS | _PHONEME_IPA
        rate = library.espeak_Initialize(_AUDIO_SYNCHRONOUS, 0, self._data, events)
        if rate <= 0:
            raise ConfigError(f"eSpeak NG did not start (data in {self._data.decode()})")
        name = f"{_LANGUAGES[voice.language]}+{voice.variant}"
        # eSpeak takes a variant it does not have for the plain voice, silently.
        known = (Path(self._data.decode()) / "voices" / "!v" / voice.variant).is_file()
        if not known or library.espeak_SetVoiceByName(name.encode()) != 0:
            _stop(library)
            raise ConfigError(f"eSpeak NG has no voice {name!r}")
        settings = {_RATE: voice.rate, _VOLUME: _LOUDNESS}
        settings |= {_PITCH: voice.pitch, _PITCH_RANGE: voice.pitch_range}
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        # Breath and flutter are random: the start above seeds the library's own generator from the
        # clock, and the C library's rand() is used besides.
        ctypes.CDLL(None).srand(1)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        return library, rate


def _stop(library: ctypes.CDLL) -> None:
    """Unload the library, which is loaded afresh for each sentence (it takes milliseconds).

    Its static variables (wave phase, flutter, echo) survive `espeak_Terminate`; with them a clip
    would depend on what was said before it in the same process, and on the number of workers.
    """
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)


def _run(library: ctypes.CDLL, text: str) -> tuple[np.ndarray, list[tuple[int, int, int, str]]]:
    """Say `text`; return (N,) float32 and the events (type, sample, text position, phone)."""
    chunks, events = [], []

    def receive(wave, count, event):
        if wave and count:
            chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while event[i].type != _EVENT_END:
            e, name = event[i], ""
            if e.type == _EVENT_PHONEME:
                raw = ctypes.string_at(ctypes.addressof(e.id), _IPA_LENGTH).split(b"\0")[0]
                name = raw.decode("utf-8", "ignore")  # a long name may be cut inside a letter
            events.append((e.type, e.sample, e.text_position, name))
            i += 1
        return 0

    callback = _Callback(receive)  # kept alive until the synthesis is over
    library.espeak_SetSynthCallback(callback)
    raw, flags = text.encode() + b"\0", _UTF8 | _PHONEMES
    status = library.espeak_Synth(raw, len(raw), 0, _POSITION_CHARACTER, 0, flags, None, None)
    library.espeak_Synchronize()
    if status != 0 or not chunks:
        raise ConfigError(f"eSpeak NG could not say {text!r} (status {status})")
    return np.concatenate(chunks).astype(np.float32) / 32768.0, events


def normalise_phone(symbol: str) -> str:
    """Reduce a phone to IPA letters without stress, length, tone or aspiration: "ˈuː" is "u".

    eSpeak's Mandarin writes some letters in ASCII; they change the lips, so they are put right:
    "s." is "ʂ", "o-" is "ɤ", the buzzed vowels "i." and "i̪" are "ɨ", "ong" is "oŋ", and the "h" of
    "ph" goes.
    """
    text = unicodedata.normalize("NFD", symbol)
    for written, meant in (("s.", "ʂ"), ("i.", "ɨ"), ("i\u032a", "ɨ"), ("o-", "ɤ"), ("ɡ", "g")):
        text = text.replace(written, meant)
    text = "".join(c for c in text if c.isalpha() and unicodedata.category(c) != "Lm")
    text = text.replace("ong", "oŋ")
    return text[:-1] if len(text) > 1 and text.endswith("h") else text


def _phones(events, rate: int, total: float) -> tuple[Phone, ...]:
    marks = [(sample / rate, name) for kind, sample, _, name in events if kind == _EVENT_PHONEME]
    edges = [min(start, total) for start, _ in marks] + [total]
    spans = zip(marks, edges, edges[1:], strict=False)
    return tuple(Phone(normalise_phone(n), a, b) for (_, n), a, b in spans if b > a)


def _words(words, starts, events, phones, *, rate: int) -> tuple[Word, ...]:
    """Time the words: an eSpeak word (in Mandarin a character) begins one of ours or goes on."""
    times: dict[int, float] = {}
    for kind, sample, position, _ in events:
        if kind == _EVENT_WORD:
            index = int(np.searchsorted(starts, position, side="right")) - 1
            times.setdefault(index, sample / rate)
    if sorted(times) != list(range(len(words))):
        missing = [w for i, w in enumerate(words) if i not in times]
        raise ConfigError(f"eSpeak NG ran words together in {' '.join(words)!r}: {missing}")
    last = max((p.end for p in phones if p.symbol), default=0.0)
    begin = [times[i] for i in range(len(words))]
    return tuple(Word(w, b, e) for w, b, e in zip(words, begin, begin[1:] + [last], strict=True))
