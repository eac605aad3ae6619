"""align.py: what the published 200×200 geometry implies, the template fit, and pixels that follow the landmarks."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe.align import (
    ALIGNMENTS,
    MIRROR_49,
    TEMPLATE_52,
    align,
    align_face,
    align_template,
    are_plausible,
    find_warp,
    five_points,
    resize_face,
    scale_of,
    scheme_of,
    to_ibug49,
    transform_points,
    warp_image,
)
from aupipe.config import ALIGN_SIZE
from aupipe.schema import ConfigError, DataError


def make_landmarks(seed=0):
    """49 points in the places of a face about 200 pixels wide, with some disorder."""
    points = np.random.default_rng(seed).normal(0, 3, (49, 2))
    points[:5] += [-50, -40]
    points[5:10] += [50, -40]
    points[10:14] += [2, 10]
    points[14:19] += [0, 30]
    points[19:25] += [-45, -15]
    points[25:31] += [45, -12]
    points[31:49] += [0, 60]
    points[31], points[37] = [-30, 58], [33, 61]
    return points + np.array([160, 150])


def similarity(angle, scale, shift):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


IMAGE = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (300, 320, 3), np.uint8), (0, 0), 3)


@pytest.mark.parametrize("seed", range(5))
def test_five_aligned_points_fill_the_published_box(seed):
    face = align_face(IMAGE, make_landmarks(seed))
    five = five_points(face.landmarks)
    low, high = five.min(0), five.max(0)
    assert face.image.shape == (200, 200, 3)
    np.testing.assert_allclose((low + high) / 2, [99.5, 99.5], atol=1e-3)
    assert max(high - low) == pytest.approx(199 / 2.9, abs=1e-3)
    assert five[0, 1] == pytest.approx(five[1, 1], abs=1e-3), "the eyes are level"
    assert five[0, 0] < five[1, 0], "and not upside down"


def test_size_and_enlarge_scale_the_box():
    five = five_points(align_face(IMAGE, make_landmarks(), size=64, enlarge=2.0).landmarks)
    np.testing.assert_allclose((five.min(0) + five.max(0)) / 2, [31.5, 31.5], atol=1e-3)
    assert max(np.ptp(five, axis=0)) == pytest.approx(63 / 2.0, abs=1e-3)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(angle=st.floats(-3.1, 3.1), scale=st.floats(0.3, 4), x=st.floats(-50, 50), y=st.floats(-50, 50))
def test_aligned_landmarks_do_not_depend_on_where_the_face_was(angle, scale, x, y):
    points = make_landmarks()
    centre = points.mean(0)
    moved = transform_points(points - centre, similarity(angle, scale, (x, y))) + centre
    for name in ALIGNMENTS:
        expected, got = align(name, IMAGE, points).landmarks, align(name, IMAGE, moved).landmarks
        np.testing.assert_allclose(got, expected, atol=1e-2)


@pytest.mark.parametrize("name", ["face200", "face112"])
def test_warp_takes_landmarks_and_pixels_to_the_same_place(name):
    points = make_landmarks()
    face = align(name, IMAGE, points)
    np.testing.assert_allclose(transform_points(points, face.warp), face.landmarks, atol=1e-3)
    where = np.rint(points[19]).astype(int)
    dotted = IMAGE.copy()
    dotted[where[1] - 2 : where[1] + 3, where[0] - 2 : where[0] + 3] = 255
    change = np.abs(align(name, dotted, points).image.astype(float) - face.image).sum(2)
    y, x = np.mgrid[: change.shape[0], : change.shape[1]]
    found = np.array([(x * change).sum(), (y * change).sum()]) / change.sum()
    np.testing.assert_allclose(found, transform_points(where[None], face.warp)[0], atol=0.5)


def expand(points, scheme):
    """49 points as 66 or 68: with a jaw, and with the inner mouth corners."""
    if scheme == "ibug49":
        return points
    with_jaw = np.concatenate([points[:17] * 0 + [40, 290], points])
    return with_jaw if scheme == "ibug66" else np.insert(with_jaw, [60, 63], 3.0, axis=0)


@pytest.mark.parametrize("scheme", ["ibug49", "ibug66", "ibug68"])
@pytest.mark.parametrize(("size", "enlarge"), [(200, 2.9), (112, 2.9), (200, 2.0)])
def test_square_of_every_scheme_is_computed_by_hand(scheme, size, enlarge):
    """The published recipe, step by step and in complex numbers: rotate, box of five, scale to size − 1."""
    points = make_landmarks(4)
    z = points @ [1, 1j]
    left, right = z[19:25].mean(), z[25:31].mean()
    turn = np.conj(right - left) / abs(right - left)
    level = np.array([left, right, z[13], z[31], z[37]]) * turn
    extent = max(np.ptp(level.real), np.ptp(level.imag))
    middle = (level.real.min() + level.real.max() + 1j * (level.imag.min() + level.imag.max())) / 2
    expected = (size - 1) / (enlarge * extent) * (z * turn - middle) + (size - 1) / 2 * (1 + 1j)
    face = align_face(IMAGE, expand(points, scheme), scheme, size, enlarge)
    inner = to_ibug49(face.landmarks, scheme)
    np.testing.assert_allclose(inner @ [1, 1j], expected, atol=1e-3)
    assert scale_of(face.warp) == pytest.approx((size - 1) / (enlarge * extent))


@pytest.mark.parametrize("name", ["face200", "face112", "prealigned"])
def test_crop_is_traced_back_to_the_source_by_its_warp(name):
    """A spot in the source, found in the crop and taken back by the warp as it is stored: in float32."""
    points, spots = make_landmarks(2), [(150, 140), (175, 165), (140, 190)]
    for x, y in spots:
        source = np.full((300, 320, 3), 90, np.uint8)
        cv2.circle(source, (x, y), 4, (250, 250, 250), -1)
        face = resize_face(source, 200) if name == "prealigned" else align(name, source, points)
        weight = np.clip(face.image[..., 0].astype(float) - 129, 0, None)  # nothing but the spot is brighter than the border
        v, u = np.mgrid[: len(weight), : len(weight)]
        centre = [[(u * weight).sum() / weight.sum(), (v * weight).sum() / weight.sum()]]
        stored = face.warp.astype(np.float32).astype(float)
        np.testing.assert_allclose(transform_points(centre, cv2.invertAffineTransform(stored))[0], [x, y], atol=0.25)


@pytest.mark.parametrize("name", ["face200", "face112"])
@pytest.mark.parametrize("reduced", [2, 4])
def test_reduced_source_gives_the_same_face(name, reduced):
    """Of a ramp the mean tells where pixels come from: half a block off would be half a block's rise."""
    y, x = np.mgrid[:1200, :1280]
    rise = 0.09 * x + 0.1 * y
    # A falling one beside the rising one, because all are rounded in one direction; noise, because ties are.
    ramp = np.stack([8 + rise, 250 - rise, 8 + rise], 2)
    big = np.rint(ramp + np.random.default_rng(0).normal(0, 2, ramp.shape)).astype(np.uint8)
    points = 4 * make_landmarks() + 1.5
    small = np.rint(big.reshape(1200 // reduced, reduced, 1280 // reduced, reduced, 3).mean((1, 3))).astype(np.uint8)
    face, whole = align(name, small, points, reduced), align(name, big, points)
    np.testing.assert_array_equal(face.warp, whole.warp)
    np.testing.assert_array_equal(face.warp, find_warp(name, points))
    np.testing.assert_array_equal(face.landmarks, whole.landmarks)
    difference = (face.image.astype(float) - whole.image)[3:-3, 3:-3]
    assert np.abs(difference).mean() < 1
    rising, falling = difference.mean((0, 1))[:2]
    assert abs(rising - falling) / 2 < 0.19 * (reduced - 1) / 2 / 3
    with pytest.raises(DataError, match="outside"):
        align(name, small, points + 1280, reduced)


def test_scale_is_the_maps_own():
    assert scale_of(similarity(0.7, 0.31, (5, 6))) == pytest.approx(0.31)


def test_source_at_the_right_scale_is_copied_pixel_for_pixel():
    """Scale 1, no rotation, whole shift: interpolation has nothing to do, so an offset of half a pixel would show."""
    warp = np.array([[1, 0, -40], [0, 1, -30]], float)
    np.testing.assert_array_equal(warp_image(IMAGE, warp, 200), IMAGE[30:230, 40:240])


def test_outside_of_the_image_is_grey():
    assert (warp_image(IMAGE, np.array([[1, 0, 500], [0, 1, 0]], float), 100) == 128).all()
    corner = warp_image(IMAGE, np.array([[1, 0, 50], [0, 1, 50]], float), 100)
    assert (corner[:49] == 128).all()
    assert (corner[:, :49] == 128).all()
    np.testing.assert_array_equal(corner[50:, 50:], IMAGE[:50, :50])


@pytest.mark.parametrize("name", ["face200", "face112"])
def test_face_at_the_border_is_filled_as_its_alignment_says(name):
    """The left part of the square lies outside of the image; the faces are the same where they lie inside."""
    points = make_landmarks() - [make_landmarks()[:, 0].min(), 0]
    grey, black, mirror = (align(name + kind, IMAGE, points) for kind in ("", "-black", "-reflect"))
    size = len(grey.image)
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    source = transform_points(pixels, cv2.invertAffineTransform(grey.warp)).reshape(size, size, 2)
    outside = source[..., 0] < -2
    inside = ((source > 1) & (source < np.array(IMAGE.shape[1::-1]) - 2)).all(-1)
    assert outside.any()
    assert (grey.image[outside] == 128).all()
    assert (black.image[outside] == 0).all()
    assert len(np.unique(mirror.image[outside])) > 20
    for other in (black, mirror):
        np.testing.assert_array_equal(other.image[inside], grey.image[inside])
        np.testing.assert_array_equal(other.warp, grey.warp)


@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize("scale", [0.12, 0.3, 0.45])
def test_strong_reduction_averages_and_stays_in_place(scale, angle):
    """A linear ramp has the same values whatever is averaged, so geometry shows; noise must fade, so averaging shows."""
    y, x = np.mgrid[:900, :900]
    ramp = np.repeat((20 + 0.1 * x + 0.12 * y)[..., None], 3, 2)
    warp = similarity(angle, scale, (10, 5))
    square = warp_image(np.rint(ramp).astype(np.uint8), warp, 80).astype(float)
    v, u = np.mgrid[:80, :80]
    source = transform_points(np.stack([u.ravel(), v.ravel()], 1), cv2.invertAffineTransform(warp))
    expected = (20 + 0.1 * source[:, 0] + 0.12 * source[:, 1]).reshape(80, 80)
    inside = ((source > 20) & (source < 879)).all(1).reshape(80, 80)
    assert inside.sum() > 1000
    assert np.abs(square[..., 0] - expected)[inside].max() < 1.2  # rounding, twice

    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    plain = cv2.warpAffine(noise, warp, (80, 80), flags=cv2.INTER_LINEAR)
    assert warp_image(noise, warp, 80)[inside].std() < 0.75 * plain[inside].std()


def test_huge_faces_in_small_images_and_the_reverse():
    points = make_landmarks()
    for factor in (0.05, 30.0):
        moved = (points - 160) * factor + 160
        assert align_face(IMAGE, moved).image.shape == (200, 200, 3)
    tip = points[13]  # the only point inside an image of one pixel
    assert align_face(IMAGE[:1, :1], (points - tip) * 10).image.shape == (200, 200, 3)


def test_template_recovers_a_known_similarity():
    template = align_template(IMAGE, make_landmarks()).landmarks
    # Points that are the template's image under a similarity come back to it exactly, whichever it was.
    known = similarity(0.7, 2.5, (60, 40))
    face = align_template(IMAGE, transform_points(TEMPLATE_52, known), scheme="five")
    np.testing.assert_allclose(face.landmarks, TEMPLATE_52, atol=1e-4)
    whole = np.vstack([face.warp, [0, 0, 1]]) @ np.vstack([known, [0, 0, 1]])
    np.testing.assert_allclose(whole, np.eye(3), atol=1e-9)
    assert template.shape == (49, 2)
    double = align_template(IMAGE, transform_points(TEMPLATE_52, known), scheme="five", size=224)
    np.testing.assert_allclose(double.landmarks, 2 * TEMPLATE_52, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_template_fit_is_least_squares_and_no_reflection(seed):
    points = make_landmarks(seed)
    warp = align_template(IMAGE, points).warp
    five = five_points(points)
    # The normal equations of u = a·x − b·y + c, v = b·x + a·y + d, solved by somebody else.
    rows = [[x, -y, 1, 0] for x, y in five] + [[y, x, 0, 1] for x, y in five]
    a, b, c, d = np.linalg.lstsq(np.array(rows), TEMPLATE_52.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(warp, [[a, -b, c], [b, a, d]], atol=1e-9)
    assert np.linalg.det(warp[:, :2]) > 0
    flipped = points * [-1, 1] + [320, 0]
    assert np.linalg.det(align_template(IMAGE, flipped).warp[:, :2]) > 0


def test_schemes_name_the_same_five_points():
    points = make_landmarks()
    jaw, corner = np.full((17, 2), 7.0), np.full((1, 2), 9.0)
    with_jaw = np.concatenate([jaw, points])  # 66 points
    full = np.concatenate([with_jaw[:60], corner, with_jaw[60:63], corner, with_jaw[63:]])
    assert len(full) == 68
    expected = five_points(points)
    for scheme, other in (("ibug66", with_jaw), ("ibug68", full), ("five", expected)):
        np.testing.assert_allclose(five_points(other, scheme), expected)
        np.testing.assert_array_equal(align_face(IMAGE, other, scheme).image, align_face(IMAGE, points).image)


def test_mirrored_face_is_the_mirror_of_the_aligned_face():
    assert sorted(MIRROR_49) == list(range(49))
    np.testing.assert_array_equal(MIRROR_49[MIRROR_49], np.arange(49))
    points = make_landmarks()
    # The square is built from a bounding box, so it is symmetric where the eyes' line is that of the whole face.
    mirrored = (points * [-1, 1] + [IMAGE.shape[1] - 1, 0])[MIRROR_49]
    face, other = align_face(IMAGE, points), align_face(IMAGE[:, ::-1].copy(), mirrored)
    np.testing.assert_allclose(other.landmarks, (face.landmarks * [-1, 1] + [199, 0])[MIRROR_49], atol=1e-3)
    assert np.abs(other.image[:, ::-1].astype(int) - face.image).mean() < 1


def test_names_of_alignments_are_those_of_the_configuration():
    assert set(ALIGNMENTS) == {name.partition("-")[0] for name in ALIGN_SIZE}
    for name, size in ALIGN_SIZE.items():
        assert align(name, IMAGE, make_landmarks()).image.shape == (size, size, 3)
    with pytest.raises(ConfigError, match="face200"):
        align("face300", IMAGE, make_landmarks())
    with pytest.raises(ConfigError, match="ibug49"):
        five_points(make_landmarks(), "ibug51")


BAD = {
    "nan": np.full((49, 2), np.nan),
    "infinite": np.where(np.arange(98).reshape(49, 2) == 40, np.inf, make_landmarks()),
    "equal": np.full((49, 2), 100.0),
    "zeros": np.zeros((49, 2)),
    "outside": make_landmarks() + 5000,
    "too few": make_landmarks()[:48],
    "flat": make_landmarks().ravel(),
}


@pytest.mark.parametrize("name", ["face200", "face112"])
@pytest.mark.parametrize("bad", BAD)
def test_landmarks_without_geometry_are_refused(name, bad):
    with pytest.raises(DataError):
        align(name, IMAGE, BAD[bad])


def test_49_points_are_taken_out_of_larger_schemes():
    points = make_landmarks()
    of_66 = np.concatenate([np.full((17, 2), -1.0), points])
    of_68 = np.insert(of_66, [60, 63], -2.0, axis=0)
    assert [scheme_of(n) for n in (49, 66, 68, 5, 51)] == ["ibug49", "ibug66", "ibug68", "five", None]
    for larger in (points, of_66, of_68):
        scheme = scheme_of(len(larger))
        np.testing.assert_array_equal(to_ibug49(larger, scheme), points)
        np.testing.assert_allclose(five_points(larger, scheme), five_points(points))
    with pytest.raises(ConfigError, match="five"):
        to_ibug49(np.zeros((5, 2)), "five")
    with pytest.raises(DataError):
        to_ibug49(of_66, "ibug68")


IMPOSSIBLE = {
    "nan": np.where(np.arange(98).reshape(49, 2) == 41, np.nan, make_landmarks()),
    "infinite": np.where(np.arange(98).reshape(49, 2) == 41, np.inf, make_landmarks()),
    "one at the corner": np.where(np.arange(49)[:, None] == 7, 0.0, make_landmarks()),
    "one at the corner, origin moved": np.where(np.arange(49)[:, None] == 7, -1.0, make_landmarks()),
    "zeros": np.zeros((49, 2)),
    "outside": make_landmarks() + 5000,
    "half outside": make_landmarks() - [make_landmarks()[:, 0].mean() + 30, 0],
    "one place": np.full((49, 2), 100.0),
    "one line": make_landmarks() * [1, 0] + [0, 100],
    "none": np.zeros((0, 2)),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_a_tracker_leaves_of_a_lost_face_is_told(name):
    height, width = IMAGE.shape[:2]
    assert are_plausible(make_landmarks(), height, width)
    assert not are_plausible(IMPOSSIBLE[name], height, width)


def test_face_at_the_border_is_plausible():
    height, width = IMAGE.shape[:2]
    points = make_landmarks()
    shifted = points - [np.quantile(points[:, 0], 0.2), 0]
    assert (shifted[:, 0] < 0).sum() >= 5
    assert are_plausible(shifted, height, width)


@pytest.mark.parametrize(("shape", "size"), [((112, 112), 112), ((112, 112), 200), ((200, 150), 112), ((50, 300), 200)])
def test_prealigned_face_is_scaled_about_its_centre(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 4)
    face = resize_face(image, size)
    assert face.image.shape == (size, size, 3)
    scale = size / max(shape)
    centre = transform_points([[(shape[1] - 1) / 2, (shape[0] - 1) / 2]], face.warp)
    np.testing.assert_allclose(centre, [[(size - 1) / 2] * 2])
    np.testing.assert_allclose(face.warp[:, :2], np.eye(2) * scale)
    if shape == (size, size):
        np.testing.assert_array_equal(face.image, image)
    height, width = (round(scale * n) for n in shape)
    top, left = (size - height) // 2, (size - width) // 2
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    inner = face.image[top + 3 : top + height - 3, left + 3 : left + width - 3]
    assert np.abs(inner.astype(int) - expected[3:-3, 3:-3]).mean() < 3
    assert (face.image[: max(0, top - 1)] == 128).all(), "grey beyond the picture"
