"""Where a video cuts to another scene, by PySceneDetect (extra ``[prepare]``)."""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO

import numpy as np

from sana_train.data.preparation.decoding import Timeline
from sana_train.data.video import BadClip


def require_scene_detector() -> str:
    """The version of PySceneDetect.

    Raises:
        ValueError: it is not installed.
    """
    return _import("scenedetect").__version__


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)  # an extra, so not among the imports above
    except ImportError as error:
        raise ValueError(
            f"scene_threshold needs PySceneDetect, which cannot be imported ({error}); install the extra "
            "[prepare] (pip install -e '.[prepare]'), or leave it out with scene_threshold=null"
        ) from error


def scene_starts(file: BinaryIO, timeline: Timeline, threshold: float) -> list[int]:
    """The index of each scene's first frame, 0 first.

    Args:
        threshold: of PySceneDetect's ContentDetector: mean change of hue, saturation and brightness, 0 to
            255, from one frame to the next. Its default is 27.

    Raises:
        BadClip: the video cannot be decoded.
    """
    import av

    scenedetect, backend = _import("scenedetect"), _import("scenedetect.backends.pyav")
    manager = scenedetect.SceneManager()
    # A scene may be of one frame: what is too short for a clip is told by the length of clips.
    manager.add_detector(scenedetect.ContentDetector(threshold=threshold, min_scene_len=1))
    try:
        manager.detect_scenes(backend.VideoStreamAv(file))
    except (av.FFmpegError, OSError, scenedetect.VideoOpenFailure) as error:
        raise BadClip(f"scenes cannot be looked for ({error})") from error
    times_s = np.array([float(timeline.time_s(index)) for index in range(len(timeline.pts))])
    cuts_s = [start.seconds for start, _ in manager.get_scene_list(start_in_scene=True)]
    return sorted({0, *(int(np.abs(times_s - cut).argmin()) for cut in cuts_s)})
