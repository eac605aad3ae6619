"""What a recipe is: one row of a paper's table as plain values, checked. `config` reads them from params.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aupipe.facs import AUSet
from aupipe.schema import ConfigError

MODELS = Path(__file__).parent / "models"
# Aligned faces, pixels on a side; a name also says what lies outside of the source image, grey if it says nothing.
ALIGN_SIZE = {f"face{size}{outside}": size for outside in ("", "-black", "-reflect") for size in (200, 112)}
NORMALISE, AUGMENT = ("model", "image", "grey"), ("crop", "strong")


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Which aligned face a model reads and the square that is cut from it: at random in training, central otherwise;
    `resize` is the size that this square is then shrunk to, None for its own.

    `normalise`: model (its own mean and deviation) · image (each image's own) · grey (each image's own, of its luminance).
    `augment`: crop (moved and mirrored, as in the papers) · strong (turned, relit, blurred and covered too).
    """

    align: str = "face200"
    crop: int = 176
    resize: int | None = None
    normalise: str = "model"
    augment: str = "crop"

    def __post_init__(self) -> None:
        if self.align not in ALIGN_SIZE:
            raise ConfigError(f"unknown alignment '{self.align}' in an input; known are {', '.join(ALIGN_SIZE)}")
        if not 0 < self.crop <= ALIGN_SIZE[self.align]:
            largest = ALIGN_SIZE[self.align]
            raise ConfigError(f"a crop of {self.crop} pixels does not fit into {self.align}; give 1 to {largest}")
        if self.resize is not None and not 0 < self.resize <= self.crop:
            raise ConfigError(f"a crop of {self.crop} pixels cannot be shrunk to {self.resize}; give 1 to {self.crop}")
        for key, value, known in (("normalise", self.normalise, NORMALISE), ("augment", self.augment, AUGMENT)):
            if value not in known:
                raise ConfigError(f"unknown {key} '{value}' of an input; known are {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Windows of a session: `frames` of them `interval` frames apart, a new window every `stride` frames."""

    frames: int
    stride: int
    interval: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.interval) < 1:
            raise ConfigError("a clip's frames, stride and interval must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """`weighting`: none · inverse_rate (STRAL eq. 1) · positive (ABAW eq. 4). `attention_l1`: λ of STRAL eq. 3.
    `kind`: bce · asymmetric (ME-GraphAU's). `relations`: λ of ME-GraphAU's edges, for its stage 2.

    `intensity` weighs the squared error of the model's intensity head, whose `intensity: true` it needs, on a corpus that
    codes intensities (AUxx_r). `auxiliary` weighs the BCE of the model's auxiliary logits: those of SAT-Net's pooled masks,
    or of STRAL's attention stage.
    """

    weighting: str = "none"
    kind: str = "bce"
    attention_l1: float = 0.0
    relations: float = 0.0
    intensity: float = 0.0
    auxiliary: float = 0.0

    def __post_init__(self) -> None:
        if self.weighting not in ("none", "inverse_rate", "positive"):
            raise ConfigError(f"unknown loss weighting '{self.weighting}'; known are none, inverse_rate, positive")
        if self.kind not in ("bce", "asymmetric"):
            raise ConfigError(f"unknown kind of loss '{self.kind}'; known are bce, asymmetric")
        if not 0 <= self.relations < float("inf"):
            raise ConfigError(f"a loss's relations is a weight ≥ 0, not {self.relations}")
        if not 0 <= self.intensity < float("inf"):
            raise ConfigError(f"a loss's intensity is a weight ≥ 0, not {self.intensity}")
        if not 0 <= self.auxiliary < float("inf"):
            raise ConfigError(f"a loss's auxiliary is a weight ≥ 0, not {self.auxiliary}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """`decay` multiplies the learning rate every `decay_every` epochs. `schedule: one_cycle` instead lets it rise to `lr`
    over the first three tenths of the phase and fall to zero by its end, step by step; `cosine` lets it fall all the way.
    """

    name: str
    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: float = 1.0
    decay_every: int = 1
    schedule: str = "step"

    def __post_init__(self) -> None:
        if self.schedule not in ("step", "one_cycle", "cosine"):
            raise ConfigError(f"unknown schedule '{self.schedule}'; known are step, one_cycle, cosine")
        if self.name not in ("adam", "adamw", "sgd"):
            raise ConfigError(f"unknown optimiser '{self.name}'; known are adam, adamw, sgd")
        if not self.lr > 0 or self.decay_every < 1:
            raise ConfigError("an optimiser needs a positive lr and decay_every ≥ 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseConfig:
    """Part of a training with its own optimiser. `batch` counts clips per step over all workers together.

    `crops`, for a model whose feature part is frozen: its features are computed once, for so many crops of every session,
    the central one first, and each clip of an epoch draws one of them; 0 computes them anew from frames at every step.
    `patience` ends the phase after so many epochs without a better mean F1 on `val`; 0 never does.
    """

    name: str
    epochs: int
    batch: int
    optimiser: OptimiserConfig
    crops: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise ConfigError(f"phase '{self.name}' needs at least one epoch and one clip per batch")
        if self.crops < 0:
            raise ConfigError(f"phase '{self.name}' has crops ≥ 0, not {self.crops}")
        if self.patience < 0:
            raise ConfigError(f"phase '{self.name}' has a patience of epochs ≥ 0, not {self.patience}")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """The run whose selected checkpoint a training starts from: of `recipe`, on the same corpus and fold unless named.

    `au_map` says for an AU of ours from which one of that checkpoint it starts; the others start from themselves.
    """

    recipe: str
    corpus: str | None = None
    fold: str | None = None
    au_map: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for numbers in (self.au_map, set(self.au_map.values())):
            if numbers:
                AUSet(tuple(numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One row of a paper's table: model, input, clip, loss and phases, and where in which paper it stands.

    `expected` is the mean F1 that the paper prints, as printed, by corpus. `micro_batch` clips at a time go through the
    model, 0 for all of a worker's at once, and their gradients add up to those of the whole batch: less memory, but
    BatchNorm's statistics are of so many clips, and so is, where labels are missing, an AU's mean. `compile` runs the model
    through torch.compile; `recompute` computes what its blocks hold again in the backward pass, and keeps it no longer.
    """

    model: dict[str, Any]
    input: InputSpec
    clip: ClipConfig
    loss: LossConfig = field(default_factory=LossConfig)
    phases: tuple[PhaseConfig, ...]
    init: InitConfig | None = None
    precision: str = "fp32"
    micro_batch: int = 0
    compile: bool = False
    recompute: bool = False
    paper: str = ""
    section: str = ""
    expected: dict[str, float] = field(default_factory=dict)
    cost: str = ""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"unknown precision '{self.precision}'; known are fp32, bf16")
        if not self.phases:
            raise ConfigError("a recipe needs at least one phase")
        if self.micro_batch < 0:
            raise ConfigError(f"a recipe's micro_batch is a number of clips ≥ 0, not {self.micro_batch}")
        name = self.model.get("name")
        known = sorted(p.stem for p in MODELS.glob("*.py") if not p.stem.startswith("_"))
        if name not in known:
            raise ConfigError(f"unknown model '{name}' in a recipe; known are {', '.join(known)}")
        if bool(self.model.get("intensity")) != (self.loss.intensity > 0):
            raise ConfigError(
                "an intensity head and its loss go together: set model.intensity: true and loss.intensity > 0, or neither"
            )
