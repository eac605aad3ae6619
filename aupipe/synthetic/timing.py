"""Processes in time that look the same whenever they are looked at: spells, episodes, smooth noise; and how muscles follow.

A session is a window on something that has been going on. What is drawn here is therefore stationary: its share of the
frames is the same in a session of four seconds as in one of four minutes.
"""

from __future__ import annotations

import cv2
import numpy as np

from aupipe.synthetic.coordinates import Array

Span = tuple[float, float]  # least and greatest

ONSET, OFFSET = 0.12, 0.36  # time constants in seconds
WARM_UP = 2.0  # seconds after which nothing is left of where the muscles started


def smooth_noise(rng: np.random.Generator, ticks: int, channels: int, width: float) -> Array:
    """Gaussian processes (ticks, channels) of unit variance, smooth over `width` ticks."""
    reach = int(3 * width) + 1
    kernel = cv2.getGaussianKernel(2 * reach + 1, width).astype(np.float32)
    noise = rng.standard_normal((ticks + 2 * reach, channels), dtype=np.float32)
    smooth = cv2.sepFilter2D(noise, -1, np.ones(1, np.float32), kernel)[reach : reach + ticks]
    return smooth / np.float32(np.sqrt((kernel**2).sum()))


def alternate(rng: np.random.Generator, ticks: int, rate: float, spell: Span, pause: Span) -> Array:
    """Spells and pauses in turn, their seconds uniform between the bounds: how far each tick lies within its spell, (ticks,)
    in 0–1, and −1 in a pause. `rate` is in ticks a second.

    The process is in equilibrium: the cycle that is under way at the start is drawn by its length, and the start uniformly
    within it.
    """
    longest = spell[1] + pause[1]
    while True:
        lengths = (rng.uniform(*pause), rng.uniform(*spell))
        if rng.random() * longest < sum(lengths):
            break
    begin, time, inside = -float(rng.random()) * sum(lengths), np.arange(ticks) / rate, np.full(ticks, -1, np.float32)
    while begin < ticks / rate:
        begin += lengths[0]
        here = (time >= begin) & (time < begin + lengths[1])
        inside[here] = (time[here] - begin) / lengths[1]
        begin += lengths[1]
        lengths = (rng.uniform(*pause), rng.uniform(*spell))
    return inside


def scatter(rng: np.random.Generator, ticks: int, rate: float, per_second: float, stay: Span, peak: Span) -> Array:
    """Single episodes at random moments (ticks,): as high as their peak while they stay, 0 otherwise; the highest counts."""
    seconds, height = ticks / rate, np.zeros(ticks, np.float32)
    for _ in range(rng.poisson(per_second * (seconds + stay[1]))):
        begin, length, top = rng.uniform(-stay[1], seconds), rng.uniform(*stay), rng.uniform(*peak)
        here = slice(max(0, round(begin * rate)), max(0, round((begin + length) * rate)))
        np.maximum(height[here], np.float32(top), out=height[here])
    return height


def follow(effort: Array, rate: float, pace: Array | float = 1.0) -> Array:
    """How muscles follow an effort (ticks, …): an S-shaped onset, three times as fast as the offset.

    Two first-order lags one after the other, each with half of the time constant of its direction; `pace` divides both.
    """
    rise, fall = (np.float32(1) - np.exp(-2 * np.float32(pace) / np.float32(tau * rate)) for tau in (ONSET, OFFSET))
    nerve, muscle, moved = effort[0].copy(), effort[0].copy(), np.empty_like(effort)
    for tick, aim in enumerate(effort):
        step = aim - nerve
        nerve = nerve + np.where(step > 0, rise, fall) * step
        step = nerve - muscle
        muscle = muscle + np.where(step > 0, rise, fall) * step
        moved[tick] = muscle
    return moved
