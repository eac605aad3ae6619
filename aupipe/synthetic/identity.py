"""Who somebody is: the traits, drawn from the seed, that shape, skin, hair and manner of moving depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TONES = ("light", "medium", "dark")
_TONE_LIMITS = (0.62, 1.15)  # melanin
# These lengthen or point the skull beyond what people have, so they are drawn with less weight.
_CAPPED = ("head-scale-vert", "forehead/", "triangular")
_STREAM = {"traits": 0, "shape": 1, "skin": 2, "rig": 3, "habit": 4}


def stream(seed: int, subject: int, concern: str) -> np.random.Generator:
    """A subject's own random numbers for one concern: traits, shape, skin, rig or habit. More draws of one move no other."""
    return np.random.default_rng([seed, subject, 1_000_000 + _STREAM[concern]])


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is: the traits that shape, skin and hair depend on. `age` runs from 0 young to 1 old."""

    seed: int
    subject: int
    name: str
    femininity: float
    age: float
    ancestry: tuple[float, float, float]  # MakeHuman's macro shapes: african, asian, caucasian
    melanin: float
    hair: str
    hairline: float
    sweep: float
    drape: float
    cloth: tuple[float, float, float]

    @property
    def sex(self) -> str:
        return self.name[0]

    @property
    def wears_drape(self) -> bool:
        """Whether hair hangs down beside the face, `drape` decimetres below the eyes."""
        return self.hair in ("bob", "long")

    @property
    def tone(self) -> str:
        return TONES[sum(self.melanin >= limit for limit in _TONE_LIMITS)]


def name_subject(subject: int) -> str:
    """F001, M001, F002, …: 23 women to 18 men as in BP4D, with one number for a woman and a man on purpose."""
    women, total = 23, 41
    count = (subject + 1) * women // total
    is_woman = count > subject * women // total
    return f"F{count:03d}" if is_woman else f"M{subject + 1 - count:03d}"


def draw_identity(seed: int, subject: int) -> Identity:
    rng, name = stream(seed, subject, "traits"), name_subject(subject)
    ancestry = rng.dirichlet([0.6, 0.6, 0.6])
    leaning = 0.25 * float(rng.beta(1, 2))
    femininity = 1 - leaning if name[0] == "F" else leaning
    age = float(rng.beta(1, 2.2))
    melanin = float(np.clip(ancestry @ [1.75, 0.6, 0.35] + rng.normal(0, 0.15), 0.15, 2.2))
    styles = {"bald": (0.0, 0.14), "short": (0.06, 0.5), "mid": (0.14, 0.3), "bob": (0.36, 0.03), "long": (0.44, 0.03)}
    hair = str(rng.choice(list(styles), p=[w * femininity + m * (1 - femininity) for w, m in styles.values()]))
    hairline = float(rng.uniform(1.8, 2.3) - 0.25 * (1 - femininity) * age)
    sweep = float(rng.normal(0, 0.1))
    drape = float(rng.uniform(0.75, 1.25)) if hair == "bob" else 2.4
    red, green, blue = (float(v) for v in np.clip(rng.uniform(0.02, 0.4) + rng.normal(0, 0.07, 3), 0.01, 0.7))
    a, b, c = (float(w) for w in ancestry)
    return Identity(
        seed, subject, name, femininity, age, (a, b, c), melanin, hair, hairline, sweep, drape, (red, green, blue)
    )


def weigh_macro_shapes(identity: Identity, rng: np.random.Generator) -> dict[str, float]:
    """MakeHuman's whole-head shapes, by ancestry, sex, age and fullness."""
    weights = {}
    fullness = rng.normal(0, 0.3)
    for sex, share in (("female", identity.femininity), ("male", 1 - identity.femininity)):
        for age, part in (("young", 1 - identity.age), ("old", identity.age)):
            for ancestry, amount in zip(("african", "asian", "caucasian"), identity.ancestry, strict=True):
                weights[f"macro/{ancestry}-{sex}-{age}"] = amount * share * part
        weights[f"macro/universal-{sex}-young-averagemuscle-maxweight"] = share * max(0.0, fullness)
        weights[f"macro/universal-{sex}-young-averagemuscle-minweight"] = share * max(0.0, -fullness)
    return weights


def weigh_local_shapes(names: Iterable[str], rng: np.random.Generator) -> dict[str, float]:
    """Some 45 % of the local shapes, mildly; left and right go together, up to 15 % more or less."""
    weights: dict[str, float] = {}
    known = set(names)
    for name in sorted(known):
        if name.startswith(("macro/", "unit/")) or "/r-" in name:
            continue
        used, weight, ratio = rng.random() < 0.45, min(abs(rng.normal(0, 0.33)), 0.8), rng.uniform(0.85, 1.15)
        if not used:
            continue
        if name.startswith(("ears/", "asym/")):
            weight *= 0.5
        elif any(part in name for part in _CAPPED):
            weight = min(0.4 * weight, 0.3)
        elif name.startswith("head/"):
            weight *= 0.6
        weights[name] = weight
        mirrored = name.replace("/l-", "/r-")
        if mirrored != name and mirrored in known:
            weights[mirrored] = weight * ratio
    return weights
