"""Who somebody is: the traits, drawn from the seed, that shape, skin, hair and manner of moving depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TONES = ("light", "medium", "dark")
TONE_LIMITS = (0.65, 1.4)  # melanin
# Styles of hair, and how often women and men wear them; beards of men.
_HAIR = {"bald": (0.0, 0.12), "short": (0.08, 0.5), "mid": (0.16, 0.32), "bob": (0.34, 0.03), "long": (0.42, 0.03)}
_BEARDS = {"none": 0.36, "shadow": 0.28, "stubble": 0.13, "moustache": 0.05, "goatee": 0.06, "short": 0.12}
# Resting faces that look like Action Units: face units, the two signs' shares of full intensity (sd), and the AUs meant.
_AT_REST: tuple[tuple[tuple[str, ...], float, tuple[str, ...], float], ...] = (
    (("mouthFrownLeft", "mouthFrownRight"), 0.24, ("mouthSmileLeft", "mouthSmileRight"), 0.18),  # 15, 12
    (("browDownLeft", "browDownRight"), 0.22, ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"), 0.24),  # 4, 1 with 2
    (("eyeSquintLeft", "eyeSquintRight"), 0.22, ("eyeWideLeft", "eyeWideRight"), 0.22),  # 7, 5
    (("mouthPucker",), 0.1, ("mouthRollUpper", "mouthRollLower"), 0.22),  # 18, 24
    (("mouthShrugLower",), 0.14, ("mouthUpperUpLeft", "mouthUpperUpRight"), 0.12),  # 17, 10
    (("cheekSquintLeft", "cheekSquintRight"), 0.25, ("mouthDimpleLeft", "mouthDimpleRight"), 0.15),  # 6, 14
)
# These lengthen or point the skull beyond what people have, so they are drawn with less weight.
_CAPPED = ("head-scale-vert", "forehead/", "triangular")
_STREAM = {"traits": 0, "shape": 1, "skin": 2, "rig": 3, "habit": 4, "glasses": 5, "rest": 6}


def stream(seed: int, subject: int, concern: str) -> np.random.Generator:
    """A subject's own random numbers for one concern, a key of _STREAM. More draws for one move no other."""
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
    beard: str
    grey: float  # share of the hairs that are
    fringe: bool

    @property
    def sex(self) -> str:
        return self.name[0]

    @property
    def wears_drape(self) -> bool:
        """Whether hair hangs down beside the face, `drape` decimetres below the eyes."""
        return self.hair in ("bob", "long")

    @property
    def tone(self) -> str:
        return TONES[sum(self.melanin >= limit for limit in TONE_LIMITS)]


def name_subject(subject: int) -> str:
    """F001, M001, F002, …: 23 women to 18 men as in BP4D, with one number for a woman and a man on purpose."""
    women, total = 23, 41
    count = (subject + 1) * women // total
    is_woman = count > subject * women // total
    return f"F{count:03d}" if is_woman else f"M{subject + 1 - count:03d}"


def draw_identity(seed: int, subject: int) -> Identity:
    rng, name = stream(seed, subject, "traits"), name_subject(subject)
    ancestry = rng.dirichlet([0.5, 0.5, 0.5])
    leaning = 0.25 * float(rng.beta(1, 2))
    femininity = 1 - leaning if name[0] == "F" else leaning
    age = float(rng.beta(1, 2.2))
    melanin = float(np.clip(np.exp(ancestry @ np.log([3.0, 0.75, 0.3]) + rng.normal(0, 0.2)), 0.15, 3.2))
    odds = np.array([w * femininity + m * (1 - femininity) for w, m in _HAIR.values()])
    hair = str(rng.choice(list(_HAIR), p=odds / odds.sum()))
    hairline = float(rng.uniform(1.75, 2.2) + 0.6 * (1 - femininity) * age * rng.random())
    sweep = float(rng.normal(0, 0.1))
    drape = float(rng.uniform(0.75, 1.25)) if hair == "bob" else 2.4
    red, green, blue = (float(v) for v in np.clip(rng.uniform(0.02, 0.4) + rng.normal(0, 0.07, 3), 0.01, 0.7))
    a, b, c = (float(w) for w in ancestry)
    beard = str(rng.choice(list(_BEARDS), p=list(_BEARDS.values()))) if name[0] == "M" else "none"
    grey = float(np.clip(2.6 * (age - 0.45) + rng.normal(0, 0.25), 0, 1) if age > 0.25 else 0.0)
    fringe = bool(rng.random() < 0.2 * femininity and hair not in ("bald", "short"))
    if fringe:
        hairline = float(rng.uniform(1.05, 1.35))
    return Identity(
        seed, subject, name, femininity, age, (a, b, c), melanin, hair, hairline, sweep, drape, (red, green, blue),
        beard, grey, fringe,
    )  # fmt: skip


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


def weigh_resting_expression(rng: np.random.Generator) -> dict[str, float]:
    """Drooping or raised corners of the mouth, heavy or high brows, narrow eyes, pursed or thin lips: of a face at rest.

    Each look and its opposite share one normal draw; most people have little of any, left and right nearly alike.
    """
    weights = {}
    for units, much, opposite, more in _AT_REST:
        amount = float(rng.normal())
        for unit in units if amount > 0 else opposite:
            share = abs(amount) * (much if amount > 0 else more)
            weights[f"unit/{unit}"] = min(share, 0.6) * float(rng.uniform(0.85, 1.15))
    return weights
