"""The options that decide what a mouth crop looks like."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RoiOptions:
    """How mouths are found and cut out. A model must be used with the values it was trained with.

    Several scales (NPU-ASLP, https://arxiv.org/abs/2404.05466): pixels are sized by the face, so
    a scale of 48 pixels shows the lips and one of 128 the lower face, the mouth equally wide in
    both. A smaller scale is then the middle of a larger one, pixel by pixel: the largest is cut
    and stored once, and a system takes the middle that it wants by the transform
    `CenterCrop(size=64)` before its other transforms.

    Attributes:
        size: side of the square crop in pixels.
        fps: frames per second of the crops; the video is resampled to it by time stamps.
        detect_every: the face is located in every so many-th frame, and interpolated between.
        search_every: every so many frames the whole picture is searched again, so that a new face
            is seen; between searches known faces are followed (a detector that cannot follow
            searches every time). A face that gets lost starts a search at once.
        smoothing: landmarks are averaged over a centred window of so many frames; odd.
        mouth_width: width of an average mouth as a fraction of `size`. The mouth is in
            the middle of the crop. 0.45 shows nose tip to chin, as published crops do.
        max_gap: seconds for which a face may go unseen and still be the same one; its place is
            interpolated.
        link_overlap: intersection over union from which a face is taken for the one in the
            previous located frame.
        tie: faces seen at least this fraction of the time of the one seen longest count as seen
            equally long; the largest of them is taken, or, of those whose areas are as near, the
            one whose mouth moves most.
        scales: sides in pixels of all the squares that systems will take of a crop, at the
            resolution that `size` and `mouth_width` say; crops are cut at the largest. Empty:
            `size` alone.
    """

    size: int = 96
    fps: float = 25.0
    detect_every: int = 2
    search_every: int = 50
    smoothing: int = 13
    mouth_width: float = 0.45
    max_gap: float = 1.0
    link_overlap: float = 0.3
    tie: float = 0.9
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("size", "fps", "detect_every", "search_every", "smoothing", "mouth_width"):
            if getattr(self, name) <= 0:
                raise ValueError(f"RoiOptions.{name} must be positive, not {getattr(self, name)}")
        if self.smoothing % 2 == 0:
            raise ValueError(f"RoiOptions.smoothing must be odd, not {self.smoothing}")
        for scale in self.scales:
            # Between odd and even sides the middle is off by half a pixel.
            if scale <= 0 or (scale - self.side) % 2:
                wanted, sides = "positive and all even or all odd", ", ".join(map(str, self.scales))
                raise ValueError(f"RoiOptions.scales must be {wanted}, not {sides}")

    @property
    def side(self) -> int:
        """Return the side in pixels of the squares that are cut and stored."""
        return max(self.scales, default=self.size)

    @property
    def side_mouth_width(self) -> float:
        """Return the width of an average mouth as a fraction of `side`."""
        return self.mouth_width * self.size / self.side
