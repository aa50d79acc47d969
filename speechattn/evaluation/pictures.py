"""Pictures of one utterance: crops, transcript, posteriors and attention over one time axis."""

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from rich.cells import cell_len

from speechattn.decoding.alignment import WordTime, token_times, word_times
from speechattn.decoding.ctc import AlignmentError
from speechattn.evaluation.alignment import SPACE
from speechattn.evaluation.experiment import Details
from speechattn.evaluation.svg import BLANK_COLORS, HEAT, INK, MUTED, RC, SERIES, WIDTH, to_svg

LABELS = 0.95  # inches on the left for token labels
MAX_ROWS = 40  # units shown of the posteriors


def utterance_picture(details: Details) -> str:
    """Draw crops, transcript, posteriors, attention over one time axis as SVG; "" without any."""
    attention = details.cross_attention
    posteriors = None if details.ctc is None else ctc_rows(details.ctc)
    words = words_in_time(details)
    parts: list[tuple[str, float]] = []
    if details.crops is not None:
        parts.append(("crops", 0.82))
    if words:
        parts.append(("text", 0.5))
    if posteriors is not None:
        parts.append(("ctc", min(6.5, 0.2 + 0.155 * (len(posteriors) + 1))))
    if attention is not None:
        parts.append(("attention", min(6.5, 0.2 + 0.155 * attention.shape[2])))
    if not parts or not details.duration:
        return ""
    gap, bottom, top = 0.3, 0.42, 0.05
    height = sum(size for _, size in parts) + gap * (len(parts) - 1) + bottom + top
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height))
        y = height - top
        for name, size in parts:
            y -= size
            area = (LABELS / WIDTH, y / height, (WIDTH - LABELS - 0.1) / WIDTH, size / height)
            axes = figure.add_axes(area)
            axes.set_xlim(0, details.duration)
            last = name == parts[-1][0]
            if name == "crops":
                _film(axes, details, (WIDTH - LABELS - 0.1) / size)
            elif name == "text":
                _transcript(axes, details, words)
            elif name == "ctc":
                _posteriors(axes, details, posteriors, size)
            else:
                _attention(axes, details, size)
            axes.tick_params(axis="x", labelbottom=last, length=3 if last else 0)
            if last:
                axes.set_xlabel("seconds")
            y -= gap
        return to_svg(figure)


def heads_picture(attention: np.ndarray) -> str:
    """Draw each head of weights (L, H, U, T), and each layer's mean, as small multiples."""
    layers, heads = attention.shape[:2]
    columns = heads + 1
    cell = (WIDTH - 0.6) / max(columns, 5)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(0.6 + cell * columns, 0.3 + layers * (0.55 * cell + 0.08)))
        grid = figure.subplots(layers, columns, squeeze=False)
        left, top = 0.6 / figure.get_figwidth(), 1 - 0.25 / figure.get_figheight()
        edges = {"left": left, "right": 1, "bottom": 0.01, "top": top}
        figure.subplots_adjust(**edges, wspace=0.06, hspace=0.12)
        for layer in range(layers):
            weights = attention[layer].astype(np.float32)
            pictures = [_shrink(picture, 120, 200) for picture in (*weights, weights.mean(axis=0))]
            for column, (axes, picture) in enumerate(zip(grid[layer], pictures, strict=True)):
                _image(axes, picture, vmax=_ceiling(picture))
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(column == heads)
                axes.spines[:].set_color(MUTED)
                if layer == 0:
                    title = "mean" if column == heads else f"head {column + 1}"
                    axes.set_title(title, fontsize=8, color=MUTED, pad=3)
                if column == 0:
                    _side_label(axes, f"layer {layer + 1}", 8)
        return to_svg(figure)


def ctc_rows(ctc: np.ndarray, threshold: float = 0.1) -> list[int]:
    """Return the units but blank whose posteriors (T, V) pass a threshold, in order of time."""
    peaks = ctc.max(axis=0)
    peaks[0] = 0
    chosen = np.flatnonzero(peaks >= threshold)
    if len(chosen) > MAX_ROWS:
        chosen = chosen[np.argsort(-peaks[chosen])[:MAX_ROWS]]
    # Ordered by the first frame near the peak, so that repeated units stand where they come first.
    first = [int(np.argmax(ctc[:, unit] >= 0.5 * peaks[unit])) for unit in chosen]
    return [int(unit) for _, unit in sorted(zip(first, chosen, strict=True))]


def shown_token(token: str) -> str:
    """Return a token as a label, with spaces made visible."""
    if token in (" ", "<space>"):
        return SPACE
    return token.replace("\u2581", SPACE).replace(" ", SPACE)


def words_in_time(details: Details) -> list[WordTime] | None:
    """Return the decoded words in time by CTC alignment; None if they cannot be aligned."""
    if details.ctc is None or details.vocabulary is None or not details.tokens:
        return None
    index = {token: i for i, token in enumerate(details.vocabulary)}
    if any(token not in index for token in details.tokens):
        return None
    log_probs = torch.from_numpy(details.ctc).clamp(min=1e-10).log()
    ids = [index[token] for token in details.tokens]
    try:
        return word_times(token_times(log_probs, ids, details.frame_shift), details.vocabulary)
    except AlignmentError:  # more tokens than frames
        return None


def _film(axes: Axes, details: Details, shape: float) -> None:
    crops = details.crops
    count = max(1, round(shape * crops.shape[1] / crops.shape[2]))
    count = min(count, len(crops))
    middle = ((np.arange(count) + 0.5) * len(crops) / count).astype(int)
    strip = np.concatenate(list(crops[middle]), axis=1)
    extent = (0, details.duration, 0, 1)
    _image(axes, strip, "gray", vmax=255, extent=extent, interpolation="antialiased")
    for edge in np.arange(1, count) * details.duration / count:
        axes.axvline(edge, color="white", linewidth=1.5)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    _side_label(axes, "mouth")


def _transcript(axes: Axes, details: Details, words: list[WordTime]) -> None:
    inches = axes.get_position().width * WIDTH
    free = [0.0, 0.0]  # seconds up to which each of the two lines is taken
    placed = []
    for i, word in enumerate(words):
        half = 0.5 * (0.085 * cell_len(word.word) + 0.08) * details.duration / inches
        middle = min(max(0.5 * (word.start + word.end), half), details.duration - half)
        line = 0 if middle - half >= free[0] or free[0] <= free[1] else 1
        free[line] = middle + half
        placed.append((word.word, middle, line))
        axes.axvspan(word.start, word.end, color=SERIES[i % 2], alpha=0.16, linewidth=0)
    heights = (0.74, 0.26) if any(line for *_, line in placed) else (0.5,)
    for text, middle, line in placed:
        axes.text(middle, heights[line], text, ha="center", va="center", fontsize=10)
    axes.set(ylim=(0, 1), yticks=[])
    axes.spines[:].set_visible(False)
    _side_label(axes, "transcript")


def _posteriors(axes: Axes, details: Details, rows: list[int], inches: float) -> None:
    count = len(rows) + 1
    for values, cmap, low, high in (
        (details.ctc[:, rows].T, HEAT, 1, count),
        (details.ctc[:, :1].T, BLANK_COLORS, 0, 1),
    ):
        if len(values):
            _image(axes, _shrink(values), cmap, extent=(0, details.duration, low, high))
    names = details.vocabulary
    labels = [shown_token(names[unit]) if names else f"#{unit}" for unit in reversed(rows)]
    axes.set(ylim=(0, count))
    axes.set_yticks(np.arange(count) + 0.5, ["blank", *labels])
    _row_labels(axes, count, inches)
    axes.set_title("CTC posteriors", pad=4, fontsize=9, color=MUTED)


def _attention(axes: Axes, details: Details, inches: float) -> None:
    mean = details.cross_attention[-1].astype(np.float32).mean(axis=0)  # (U', T)
    count = len(mean)
    extent = (0, mean.shape[1] * details.frame_shift, count, 0)
    _image(axes, _shrink(mean), vmax=_ceiling(mean), extent=extent)
    labels = [shown_token(token) for token in details.tokens][:count]
    labels += ["end"] * (count - len(labels))
    axes.set(ylim=(count, 0))
    axes.set_yticks(np.arange(count) + 0.5, labels)
    _row_labels(axes, count, inches)
    title = "decoder cross-attention, last layer, mean over heads"
    axes.set_title(title, pad=4, fontsize=9, color=MUTED)


def _row_labels(axes: Axes, count: int, inches: float) -> None:
    """Fit the labels' size to the rows; hide some labels of very low rows."""
    points = 72 * inches / count
    size = min(9.0, max(5.0, 0.8 * points))
    every = max(1, int(np.ceil(0.8 * size / points)))
    for i, label in enumerate(axes.get_yticklabels()):
        label.set_fontsize(size)
        label.set_color(INK)
        label.set_visible(i % every == 0)
    axes.tick_params(axis="y", length=0, pad=4)
    axes.spines[:].set_visible(False)


def _side_label(axes: Axes, text: str, size: int = 9) -> None:
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=size)


def _image(
    axes: Axes,
    picture: np.ndarray,
    cmap: str | Colormap = HEAT,
    *,
    vmax: float = 1.0,
    extent: tuple[float, ...] | None = None,
    interpolation: str = "none",
) -> None:
    style = {"vmin": 0, "vmax": vmax, "interpolation": interpolation}
    axes.imshow(picture, cmap, aspect="auto", extent=extent, **style)


def _shrink(picture: np.ndarray, rows: int = 400, columns: int = 1000) -> np.ndarray:
    """Reduce to at most so many cells, each the maximum of those it replaces: no spike is lost."""
    for axis, limit in enumerate((rows, columns)):
        size = picture.shape[axis]
        if size > limit:
            picture = np.maximum.reduceat(picture, np.arange(limit) * size // limit, axis=axis)
    return picture


def _ceiling(values: np.ndarray) -> float:
    """Return the weight to draw darkest, so that one peak does not wash out the rest."""
    return max(1e-6, float(np.quantile(values, 0.995)))
