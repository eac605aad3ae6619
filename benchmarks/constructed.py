"""Does each part do what it is there for? Two systems on corpora that are constructed so that only one part can tell.

- patch: an AU is a faint texture in a place of its own; all other places show the same texture, stronger, at random. STRAL's
  attention stage, and the same with all maps at 1, against the attention CNN without attention: global pooling.
- copy: an AU that does not show copies another one's state of two frames earlier. STRAL against its variant Gsa, which has
  no time, both on the same attention stage and with all edges, since labels of one frame do not correlate.
- neutral: an AU brightens its place, and people differ in their brightness at rest by more. STRAL, and its attention stage
  with the mean of the clip beside it (`relative`), against the attention stage.
- resnets: the same corpus. T-Net from the ResNet's weights, CNN-LSTM and the ResNet with `relative`, against the ResNet.

Pictures are arrays of 32 × 32 pixels, no faces. States are drawn anew for every frame, so that its neighbours tell nothing
but what is said above. Each corpus has a control in which a single frame, or a mean over all places, is enough: there the
plain system has to do well. Figures are mean AUCs on unseen people, per seed of corpus and weights, and differences with
95 % intervals over people. Run, with the parts that you want or all:

    OMP_NUM_THREADS=1 python benchmarks/constructed.py [patch] [copy] [neutral] [resnets]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.losses import label_weights, loss_terms
from aupipe.models import build_model
from aupipe.optimisers import make_optimiser, set_rate
from aupipe.recipes import LossConfig, OptimiserConfig, PhaseConfig
from aupipe.schema import LabelStats

AUS = AUSet((1, 2, 4, 6, 12, 17))
SIZE, CELL = 32, 8  # pixels of a picture and of each of its 4 × 4 places
PLACES = (SIZE // CELL) ** 2
SHOWN = (0, 3, 5, 10, 12, 15)  # the places of the AUs
TRAIN, TEST, FRAMES = 64, 64, 16  # people, and frames of each, which are one clip
SEEDS, DRAWS = (0, 1, 2), 1000
STRAL: dict[str, Any] = {"c": 1, "threshold": -1.0}  # 8 channels; every edge
LOSS = LossConfig()
FAINT, STRONG = 0.8, 2.4  # amplitudes of textures; the noise of a pixel is 0.5
VISIBLE, LAG = 3, 2  # AUs that show, and frames by which the others are late
BATCH, EPOCHS, GRAPH_EPOCHS = 4, 4, 20  # a batch's clips
RATES = {"attention_cnn": 1e-3, "stral": 5e-3, "sat_net": 1e-3, "cnn_lstm": 1e-3}  # Adam's


@dataclass(frozen=True, slots=True)
class Corpus:
    """frames_PTCHW of P people, around 0 and of a deviation near 1; labels_PTM, and mask_PTM of those that are coded."""

    frames: Tensor
    labels: Tensor
    mask: Tensor

    def stats(self) -> LabelStats:
        labels = self.labels.flatten(0, 1)[self.mask.flatten(0, 1).all(1)].double().numpy()
        return LabelStats(labels.mean(0), np.corrcoef(labels.T), self.mask.sum((0, 1)).numpy())


Fold = tuple[Corpus, Corpus]  # people to train on, and others
Logits = dict[str, NDArray]  # logits_PTM of a test side, by system; first the plain one


def draw_states(rng: np.random.Generator, people: int) -> NDArray[np.bool_]:
    """States (P, T, M), each AU on in half of the frames, none of which tells anything of another."""
    return rng.random((people, FRAMES, len(AUS))) < 0.5


def paint(rng: np.random.Generator, amplitudes_PTK: NDArray, textures_KCHW: NDArray) -> Tensor:
    """frames_PTCHW: a texture in each of the K places, as strong as its amplitude, on the person's own look and with noise.

    The look is smooth and coloured; and each person's picture as a whole lies up to a pixel beside where it should.
    """
    P, T, _ = amplitudes_PTK.shape
    side = SIZE // CELL
    cells = np.einsum("ptk,kcyx->ptkcyx", amplitudes_PTK, textures_KCHW).reshape(P, T, side, side, 3, CELL, CELL)
    pictures = cells.transpose(0, 1, 4, 2, 5, 3, 6).reshape(P, T, 3, SIZE, SIZE)
    coarse = torch.from_numpy(rng.normal(0, 0.7, (P, 3, 4, 4)))
    look = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").numpy()
    pictures = pictures + look[:, None]
    for picture, shift in zip(pictures, rng.integers(-1, 2, (P, 2)), strict=True):
        picture[:] = np.roll(picture, shift, (2, 3))
    return torch.from_numpy((pictures + rng.normal(0, 0.5, pictures.shape)).astype(np.float32))


def stripes(angle: float) -> NDArray:
    """A grey texture (3, CELL, CELL): three periods of a wave under a window that ends at the edge; its mean is 0."""
    axis = (np.arange(CELL) + 0.5) / CELL - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    window = np.cos(np.pi * x) * np.cos(np.pi * y)
    wave = np.sin(2 * np.pi * 3 * (x * np.cos(angle) + y * np.sin(angle))) * window
    return np.repeat((wave - wave.mean())[None], 3, 0)


def code_all(states_PTM: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    labels = torch.from_numpy(states_PTM.astype(np.float32))
    return labels, torch.ones_like(labels, dtype=torch.bool)


def draw_patch(rng: np.random.Generator, people: int, control: bool = False) -> Corpus:
    """An AU's place shows faint stripes where the AU is on; other places show stronger ones in half of the frames.

    Stripes are as often inverted as not, so that no mean of pixels tells. Control: none elsewhere, and each AU has its own
    angle, by which it is known wherever it is.
    """
    states = draw_states(rng, people)
    amplitudes = STRONG * (rng.random((people, FRAMES, PLACES)) < (0 if control else 0.5))
    amplitudes[..., SHOWN] = FAINT * states
    amplitudes *= rng.choice([-1, 1], amplitudes.shape)
    textures = np.stack([stripes(0.4)] * PLACES)
    if control:
        textures[list(SHOWN)] = [stripes(np.pi * k / len(AUS)) for k in range(len(AUS))]
    return Corpus(paint(rng, amplitudes, textures), *code_all(states))


def draw_copy(rng: np.random.Generator, people: int, control: bool = False) -> Corpus:
    """The first half of the AUs show; the others do not, and are what the first half were two frames earlier.

    The first two frames are not coded for those. Control: they are what the first half are now.
    """
    states = draw_states(rng, people)
    amplitudes = np.zeros((people, FRAMES, PLACES))
    amplitudes[..., SHOWN[:VISIBLE]] = STRONG * states[..., :VISIBLE]
    states[..., VISIBLE:] = np.roll(states[..., :VISIBLE], 0 if control else LAG, 1)
    labels, mask = code_all(states)
    mask[:, :LAG, VISIBLE:] = control
    return Corpus(paint(rng, amplitudes, np.stack([stripes(0.4)] * PLACES)), labels, mask)


def draw_neutral(rng: np.random.Generator, people: int, control: bool = False) -> Corpus:
    """An AU brightens its place by 1; a person's brightness at rest has a deviation of 2, place by place; control: 0."""
    states = draw_states(rng, people)
    rest = rng.normal(0, 0.0 if control else 2.0, (people, 1, PLACES)).repeat(FRAMES, 1)
    rest[..., SHOWN] += states
    bump = np.abs(np.cos(np.pi * ((np.arange(CELL) + 0.5) / CELL - 0.5)))
    return Corpus(paint(rng, rest, np.tile(np.outer(bump, bump), (PLACES, 3, 1, 1))), *code_all(states))


def build(name: str, corpus: Corpus, seed: int, **options: object) -> Any:
    torch.manual_seed(seed)
    return build_model(name, options, AUS, corpus.stats())


def train(model: Any, corpus: Corpus, inputs: Tensor, seed: int, *, epochs: int, lr: float) -> Any:
    """`inputs`: the corpus's frames, or what a frozen part of the model made of them. The loss is the plain BCE."""
    optimiser_config = OptimiserConfig(name="adam", lr=lr, schedule="one_cycle")
    phase = PhaseConfig(name="all", epochs=epochs, batch=BATCH, optimiser=optimiser_config)
    optimiser, weights = make_optimiser(phase.optimiser, model), label_weights(LOSS, corpus.stats())
    random = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        groups = torch.randperm(len(inputs), generator=random).split(BATCH)
        for step, people in enumerate(groups):
            set_rate(optimiser, phase, epoch + step / len(groups))
            terms = loss_terms(model(inputs[people]), corpus.labels[people], corpus.mask[people], LOSS, weights)
            optimiser.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def map_people(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([function(part) for part in inputs.split(8)])


def predict(model: Any, inputs: Tensor) -> NDArray:
    return map_people(lambda part: model(part).logits_BTM, inputs).numpy()


def fit(name: str, fold: Fold, seed: int, start: Any | None = None, **options: object) -> Any:
    """A model trained on the frames of the fold's train side, from the weights of another where there is one."""
    model = build(name, fold[0], seed, **options)
    if start is not None:
        model.start_from(start.state_dict(), AUS)
    return train(model, fold[0], fold[0].frames, seed, epochs=EPOCHS, lr=RATES[name])


def relate(variant: str, fold: Fold, attention: Any, seed: int, layers: int) -> NDArray:
    """Logits of a graph that is trained on the features of a trained attention stage, each computed once."""
    model = build("stral", fold[0], seed, variant=variant, graph_layers=layers, **STRAL)
    model.start_from(attention.state_dict(), AUS)
    model.eval()
    features = [map_people(model.features, corpus.frames) for corpus in fold]
    train(model, fold[0], features[0], seed, epochs=GRAPH_EPOCHS, lr=RATES["stral"])
    return predict(model, features[1])


def open_maps(model: Any) -> None:
    """Keep all attention maps at 1: σ(30) is 1 in single precision."""
    last = model.attention.branches.attention
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 30)
    last.requires_grad_(False)


def compare_patch(fold: Fold, seed: int) -> Logits:
    pooling = build("stral", fold[0], seed, variant="al", **STRAL)
    open_maps(pooling)
    train(pooling, fold[0], fold[0].frames, seed, epochs=EPOCHS, lr=RATES["stral"])
    models = {
        "CNN, global pooling": fit("attention_cnn", fold, seed, pooling="7x7", attention=False),
        "STRAL al, maps at 1": pooling,
        "STRAL al": fit("stral", fold, seed, variant="al", **STRAL),
    }
    return {name: predict(model, fold[1].frames) for name, model in models.items()}


def compare_copy(fold: Fold, seed: int) -> Logits:
    attention = fit("stral", fold, seed, variant="al", **STRAL)
    return {f"STRAL {v}": relate(v, fold, attention, seed, layers=2) for v in ("gsa", "stral")}


def compare_neutral(fold: Fold, seed: int) -> Logits:
    plain = fit("stral", fold, seed, variant="al", **STRAL)
    relative = fit("stral", fold, seed, plain, variant="al", relative="clip", **STRAL)
    again = fit("stral", fold, seed, plain, variant="al", **STRAL)  # as long as the relative one
    models = {"STRAL al": again, "STRAL al, relative": relative}
    return {name: predict(m, fold[1].frames) for name, m in models.items()} | {
        "STRAL stral": relate("stral", fold, plain, seed, layers=4)
    }


def compare_resnets(fold: Fold, seed: int) -> Logits:
    start = fit("sat_net", fold, seed, variant="resnet")
    rows: dict[str, Any] = {
        "ResNet": fit("sat_net", fold, seed, start, variant="resnet"),  # as long as those that start from it
        "T-Net": fit("sat_net", fold, seed, start, variant="t_net", mode="stateful"),
        "ResNet, relative": fit("sat_net", fold, seed, start, variant="resnet", relative="clip"),
    }
    lstm = build("cnn_lstm", fold[0], seed, trunk="resnet18", layers=1, cells=64, fusion=64)
    lstm.trunk.trunk.load_state_dict(start.trunk.state_dict())
    rows["CNN-LSTM"] = train(lstm, fold[0], fold[0].frames, seed, epochs=EPOCHS, lr=RATES["cnn_lstm"])
    return {name: predict(model, fold[1].frames) for name, model in rows.items()}


def mean_auc(logits_PTM: NDArray, corpus: Corpus, weight_DP: NDArray) -> NDArray[np.float64]:
    """Mean AUC over AUs (D,), of all coded frames together, where each person's count by a weight; ties count one half."""
    areas = []
    for m in range(logits_PTM.shape[2]):
        coded = corpus.mask[..., m].numpy()
        scores, on, person = logits_PTM[..., m][coded], corpus.labels[..., m].numpy()[coded], np.nonzero(coded)[0]
        order = scores.argsort()
        starts = np.unique(scores[order], return_index=True)[1]  # of runs of equal scores
        weight_DN = weight_DP[:, person[order]]
        positive, negative = (np.add.reduceat(weight_DN * side[order], starts, 1) for side in (on, 1 - on))
        below = negative.cumsum(1) - negative / 2
        areas.append((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))
    return np.mean(areas, 0)


def compare(part: str) -> None:
    """A row for each system: its control, its AUCs by seed, and what it has over the first system at its worst seed."""
    draw, systems = PARTS[part]
    weight_DP = np.random.default_rng(0).multinomial(TEST, np.full(TEST, 1 / TEST), DRAWS)
    weight_DP = np.concatenate([np.ones((1, TEST)), weight_DP])
    areas: list[dict[str, NDArray]] = []
    for seed, control in [(SEEDS[0], True), *((seed, False) for seed in SEEDS)]:
        rng = np.random.default_rng([seed, control])
        fold = draw(rng, TRAIN, control), draw(rng, TEST, control)
        areas.append({name: mean_auc(logits, fold[1], weight_DP) for name, logits in systems(fold, seed).items()})
    plain = next(iter(areas[0]))
    for name in areas[0]:
        by_seed = " ".join(f"{area[name][0]:.3f}" for area in areas[1:])
        row = f"{part:9}{name:21}{areas[0][name][0]:7.3f}   {by_seed}"
        if name != plain:
            gain_D = min((area[name] - area[plain] for area in areas[1:]), key=lambda gain_D: gain_D[0])
            low, high = np.quantile(gain_D[1:], (0.025, 0.975))
            row += f"   {gain_D[0]:+.3f} ({low:+.3f} to {high:+.3f})"
        print(row, flush=True)


PARTS: dict[str, tuple[Callable[..., Corpus], Callable[[Fold, int], Logits]]] = {
    "patch": (draw_patch, compare_patch),
    "copy": (draw_copy, compare_copy),
    "neutral": (draw_neutral, compare_neutral),
    "resnets": (draw_neutral, compare_resnets),
}


def main(parts: list[str]) -> None:
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"unknown parts {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    print(f"{'part':9}{'system':21}control   {'AUC by seed':{6 * len(SEEDS) - 1}}   over the first, worst seed")
    for part in parts or PARTS:
        compare(part)


if __name__ == "__main__":
    main(sys.argv[1:])
