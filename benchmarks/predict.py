"""Frames per second of `AUPredictor.predict` on a video, beside the script a user would write with the same networks.

The script reads with cv2.VideoCapture and takes each frame through face, crop and network one at a time. Usage:
python benchmarks/predict.py VIDEO CHECKPOINT_FOLDER
"""

from __future__ import annotations

import sys
import time

import cv2

from aupipe.align import align
from aupipe.landmarks import load_landmarker
from aupipe.predictor import AUPredictor


def main(video: str, checkpoint: str) -> None:
    predictor = AUPredictor.load(checkpoint)
    plain(video, predictor, limit=5)  # the networks are read at their first use
    started = time.perf_counter()
    frames = plain(video, predictor)
    by_script = frames / (time.perf_counter() - started)
    started = time.perf_counter()
    rows = predictor.predict(video).num_rows
    ours = rows / (time.perf_counter() - started)
    print(f"{video}: {rows} frames")
    print(f"  frame by frame, cv2.VideoCapture  {by_script:6.1f} frames/s   1.00")
    print(f"  AUPredictor.predict               {ours:6.1f} frames/s   {ours / by_script:.2f}")


def plain(video: str, predictor: AUPredictor, limit: int | None = None) -> int:
    capture, landmarker, frames = cv2.VideoCapture(video), load_landmarker("blazemesh"), 0
    while limit is None or frames < limit:
        there, image = capture.read()
        if not there:
            break
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if (face := landmarker.find_face(image)) is not None:
            aligned = align(predictor.description.input.align, image, face.landmarks).image
            predictor.predict_faces(aligned[None])
        frames += 1
    return frames


if __name__ == "__main__":
    main(*sys.argv[1:])
