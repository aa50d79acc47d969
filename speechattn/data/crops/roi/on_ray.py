"""The ROI stage on many machines through Ray (optional: `pip install 'speechattn[ray]'`).

Moritz et al. 2018, "Ray: a distributed framework for emerging AI applications"
(https://arxiv.org/abs/1712.05889). Ray decides which machine does which shard and begins anew what
was on a machine that is lost; all the rest is `extract`, so a run can be begun on Ray and ended
without it. Videos and crops must be on a file system that all machines see under the same paths.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.pipeline import extract
from speechattn.data.crops.roi.shards import MergeSummary, merge_shards
from speechattn.data.crops.roi.workers import DetectorFactory, RoiItem
from speechattn.errors import missing_extra

_log = logging.getLogger(__name__)


def extract_on_ray(
    items: Sequence[RoiItem],
    folder: str | Path,
    options: RoiOptions | None = None,
    workers: int = 2,
    *,
    detector: DetectorFactory | None = None,
    faces: Sequence[str | Path] = (),
    num_shards: int = 16,
    address: str | None = None,
) -> MergeSummary:
    """Crop the mouths of many videos, each shard as one task of Ray, and merge the shards.

    Args:
        items, folder, options, detector, faces: see `extract`.
        workers: processes, and so CPUs, of each task.
        num_shards: tasks; several times as many as run at once, so that they end together.
        address: of the cluster ('auto' for the one that this machine is part of); None starts Ray
            on this machine alone.

    Raises:
        ConfigError: ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    # Tasks have working directories of their own.
    folder = Path(folder).resolve()
    faces = [Path(one).resolve() for one in faces]
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(address=address, log_to_driver=False)
    try:
        shared = ray.put(list(items))
        # Restarted if its machine is lost; an error of the stage itself would only come again.
        task = ray.remote(num_cpus=max(workers, 1), max_retries=3)(extract)
        common = {"detector": detector, "faces": faces, "num_shards": num_shards, "progress": False}
        waiting = {
            task.remote(shared, folder, options, workers, **common, shard=shard): shard
            for shard in range(num_shards)
        }
        while waiting:
            ended, _ = ray.wait(list(waiting))
            summary = ray.get(ended[0])
            shard = waiting.pop(ended[0])
            _log.info("shard %d of %d: %s; %d to go", shard, num_shards, summary, len(waiting))
    finally:
        if begun_here:
            ray.shutdown()
    return merge_shards(items, folder)
