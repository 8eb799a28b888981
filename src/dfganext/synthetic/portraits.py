"""A painter of portraits: every one a different face, none of them anybody's.

Shapes are implicit functions, negative inside and about as large as the distance to the outline, so that dividing one by
a pixel's width antialiases its edge. Coordinates run from -1 to 1, x to the right and y down; colours are display values.
"""

from __future__ import annotations

import numpy as np

WHITE = np.array([0.95, 0.94, 0.92])
SKIN = np.array([[0.98, 0.86, 0.77], [0.94, 0.77, 0.65], [0.85, 0.65, 0.50], [0.70, 0.49, 0.36], [0.48, 0.32, 0.23]])
HAIR = np.array(
    [
        [0.1, 0.08, 0.08],
        [0.24, 0.15, 0.11],
        [0.43, 0.27, 0.16],
        [0.8, 0.63, 0.38],
        [0.62, 0.27, 0.13],
        [0.7, 0.69, 0.68],
    ]
)
IRIS = np.array([[0.25, 0.14, 0.07], [0.42, 0.27, 0.12], [0.30, 0.42, 0.24], [0.26, 0.45, 0.62], [0.42, 0.47, 0.50]])


def paint_portrait(rng: np.random.Generator, side: int) -> np.ndarray:
    """Paint a portrait, back to front.

    Args:
        rng: every choice comes from it.
        side: pixels a side.

    Returns:
        display values, float64, 0...1, (side, side, 3).
    """
    axis = (np.arange(side) + 0.5) * 2 / side - 1
    page_x, page_y = np.meshgrid(axis, axis)
    canvas = _wall(rng, page_x, page_y)

    def paint(colour: np.ndarray, distance: np.ndarray, opacity: float = 1.0, soft: float = 0.0) -> None:
        edge = max(soft, 1 / side)
        inside = distance < edge
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            cover = np.clip(0.5 - 0.5 * distance[box] / edge, 0, 1)
            under, over = canvas[box], colour[box] if colour.ndim == 3 else colour
            under += (opacity * cover * cover * (3 - 2 * cover))[..., None] * (over - under)

    skin, iris, clothes = _between(rng, SKIN), _between(rng, IRIS), _vivid(rng, 0.3, 0.9)
    hair = HAIR[rng.choice(len(HAIR))] * rng.uniform(0.8, 1.2)
    shade, lips = skin * [0.72, 0.60, 0.58], skin * [0.86, 0.56, 0.56]
    from_side, from_above = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.6)
    lit_side = np.sign(from_side)

    # the head's own coordinates: moved, tilted, scaled; features shift with its turn, and it narrows towards the chin
    tilt, scale, turn = rng.normal(0, 0.07), rng.uniform(0.86, 1.08), rng.uniform(-0.07, 0.07)
    moved_x, moved_y = page_x - rng.normal(0, 0.06), page_y - rng.uniform(-0.16, 0.0)
    x = (moved_x * np.cos(tilt) + moved_y * np.sin(tilt)) / scale
    y = (moved_y * np.cos(tilt) - moved_x * np.sin(tilt)) / scale
    wide, tall = rng.uniform(0.40, 0.46), rng.uniform(0.54, 0.60)
    oval = x / (1 - rng.uniform(0.10, 0.28) * np.clip(y / tall, 0, 1.2) ** 2)
    head = _ellipse(oval, y, wide, tall)
    u, v = oval / wide, y / tall
    normal_z = np.sqrt(np.clip(1 - 0.8 * (u * u + v * v), 0.05, 1))
    light = np.clip(0.35 + 0.85 * (0.9 * (u * from_side - v * from_above) + 0.75 * normal_z), 0, 1.15)[..., None]

    style = rng.choice(["bald", "short", "bob", "long"], p=[0.07, 0.38, 0.2, 0.35])
    volume, phase = rng.uniform(0.06, 0.13), rng.uniform(0, 2 * np.pi)
    curl = rng.uniform(0.0, 0.02) * np.sin(rng.integers(9, 17) * np.arctan2(y, x) + phase)
    strands = (
        0.9
        + 0.05 * np.sin(31 * u + 9 * v + phase) * np.sin(17 * u - 6 * v)
        + 0.2 * np.clip(from_side * u - v - 0.5, 0, 1)
    )
    locks = np.clip(hair * strands[..., None], 0, 1)

    # behind the face: long hair, shoulders, neck
    if style in ("bob", "long"):
        ends = 1.05 if style == "long" else 0.52
        paint(0.72 * locks, _box(x, y - (ends - 0.62) / 2, wide + volume, (ends + 0.62) / 2, 0.42) + curl)
    folds = 0.86 + 0.14 * np.clip(1.5 * page_x * from_side + 0.4, -1, 1) - 0.25 * np.clip(page_y - 0.75, 0, 1)
    shoulders = rng.uniform(1.30, 1.38)
    paint(
        clothes * folds[..., None],
        _box((page_x + moved_x) / 2, page_y - shoulders, rng.uniform(0.72, 0.92), 0.72, 0.38),
    )
    neck = rng.uniform(0.19, 0.25)
    paint(clothes * 0.72, _ellipse(x, y - 0.80, neck + 0.11, 0.16))
    paint(skin * 0.86, _box(x, y - 0.58, neck, 0.30, 0.10))
    paint(skin * 0.86, _ellipse(x, y - 0.78, neck + 0.06, 0.13))
    paint(shade * 0.80, np.maximum(_ellipse(oval, y - 0.12, wide * 0.95, tall), np.abs(x) - neck), 0.75, 0.06)

    for s in (-1, 1):  # ears
        paint(skin * 0.88, _ellipse(x - s * wide, y - 0.03, 0.06, 0.115))
        paint(shade, _ellipse(x - s * wide, y - 0.03, 0.025, 0.065), 0.6, 0.02)
    paint(np.clip(shade + (skin * 1.03 - shade) * light, 0, 1), head)
    x = x - turn  # from here on, features of the face
    for s in (-1, 1):  # cheeks
        paint(skin * [1.0, 0.72, 0.70], _ellipse(x - s * 0.23, y - 0.17, 0.11, 0.09), 0.4, 0.09)
    if rng.uniform() < 0.2:  # beard
        paint(0.9 * locks, np.maximum(head, 0.24 - 1.2 * x * x - y), rng.uniform(0.4, 0.9), 0.04)

    # eyes and brows
    apart, eye_y = rng.uniform(0.165, 0.195), rng.uniform(-0.05, 0.01)
    eye_w, eye_h = rng.uniform(0.078, 0.096), rng.uniform(0.034, 0.05)
    gaze, slant = rng.uniform(-0.018, 0.018), rng.uniform(-0.12, 0.12)
    brow_y, arch, thick = rng.uniform(0.085, 0.12), rng.uniform(0.01, 0.036), rng.uniform(0.012, 0.022)
    for s in (-1, 1):
        ex = x - s * apart
        ey = y - eye_y - s * slant * ex
        lid = eye_h * (1 - (ex / eye_w) ** 2)
        paint(shade, _ellipse(ex, ey + 0.015, eye_w + 0.05, eye_h + 0.05), 0.45, 0.05)
        paint(WHITE, np.abs(ey) - lid)
        for colour, radius in ((iris * 0.6, 0.042), (iris * 1.15, 0.034), (iris * 0.1, 0.018)):
            paint(colour, np.maximum(np.abs(ey) - lid, _ellipse(ex - gaze, ey, radius, radius)))
        paint(np.ones(3), _ellipse(ex - gaze - 0.016 * lit_side, ey + 0.016, 0.010, 0.010), 0.9)
        paint(hair * 0.25, np.maximum(np.abs(ey + lid) - 0.010, np.abs(ex) - eye_w), 0.9)
        brow = np.abs(ey + brow_y + arch * (1 - (ex / 0.12) ** 2)) - thick * (1 - 4 * s * ex)
        paint(0.15 * skin + 0.6 * hair, np.maximum(brow, np.abs(ex) - 0.115), 0.85, 0.008)

    # nose: one side in the shade, a lit ridge, two nostrils; it stands out, so it follows the turn further
    nose, tip = x - 0.5 * turn, rng.uniform(0.17, 0.22)
    paint(shade, _ellipse(nose + lit_side * 0.035, y - tip / 2 - 0.02, 0.022, tip / 2), 0.5, 0.03)
    paint(shade, _ellipse(nose, y - tip - 0.015, 0.062, 0.022), 0.7, 0.025)
    paint(np.minimum(skin * 1.12, 1), _ellipse(nose - lit_side * 0.008, y - tip + 0.045, 0.018, 0.06), 0.6, 0.03)
    for s in (-1, 1):
        paint(shade * 0.55, _ellipse(nose - s * 0.03, y - tip - 0.018, 0.013, 0.008), 0.8, 0.008)

    # mouth: two lips about one line, bent by the smile; some smiles show teeth
    mouth_w, mouth_y = rng.uniform(0.10, 0.15), rng.uniform(0.325, 0.365)
    smile, full = rng.uniform(-0.01, 0.06), rng.uniform(0.022, 0.04)
    along = x / mouth_w
    across, taper = y - mouth_y + smile * (along**2 - 0.3), np.clip(1 - along**2, -1, 1)
    paint(lips * 0.92, np.maximum(across, -across - full * taper * (0.8 - 0.2 * np.cos(5 * along))), 1, 0.006)
    paint(lips * 1.06, np.maximum(-across, across - 1.25 * full * taper), 1, 0.006)
    if smile > 0.03 and rng.uniform() < 0.4:
        paint(WHITE, np.abs(across) - 0.5 * full * taper)
    paint(lips * 0.45, np.maximum(np.abs(across) - 0.007, np.abs(x) - mouth_w), 0.7)
    paint(shade, _ellipse(x, y - mouth_y - 0.085, 0.07, 0.012), 0.5, 0.03)

    x = x + turn
    if style != "bald":  # the crown, down to a parted hairline over the forehead and to some length beside the face
        part, sweep = rng.uniform(-0.25, 0.25), rng.uniform(0.2, 0.7)
        hairline = y - rng.uniform(-0.34, -0.22) - sweep * (x - part) ** 2 + 0.06 * np.exp(-((x - part) ** 2) / 0.003)
        crown = _ellipse(x, y + 0.03, wide + 0.8 * volume, tall + 0.7 * volume) + curl
        sides = np.minimum(hairline, -_ellipse(oval, y - 0.03, wide * 0.93, tall * 0.98))
        front = np.maximum.reduce([crown, y - {"short": 0.02, "bob": 0.42, "long": 0.55}[style], sides])
        paint(shade * 0.8, np.maximum(front - 0.03, head), 0.5, 0.03)
        paint(locks, front)
    if rng.uniform() < 0.18:  # glasses
        frame = np.full(3, rng.choice([0.08, 0.35]))
        for s in (-1, 1):
            paint(frame, np.abs(_box(x - s * apart - turn, y - eye_y - 0.01, 0.135, 0.095, 0.06)) - 0.010)
        paint(frame, np.maximum(np.abs(y - eye_y) - 0.010, np.abs(x - turn) - (apart - 0.13)))
    return np.clip(canvas, 0, 1)


def _wall(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What stands behind: a gradient between two colours, with a few lights out of focus, darker in the corners."""
    one, other, angle = _vivid(rng, 0.45, 0.9), _vivid(rng, 0.3, 0.8), rng.uniform(0, 2 * np.pi)
    wall = one + (other - one) * np.clip(0.5 + 0.4 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None]
    for _ in range(rng.integers(0, 6)):
        place_x, place_y, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.08, 0.25)
        disc = np.clip(0.5 - _ellipse(x - place_x, y - place_y, radius, radius) / 0.08, 0, 1)
        wall += rng.uniform(0.06, 0.2) * disc[..., None] * (1 - wall)
    return wall * (1 - 0.16 * (x * x + y * y))[..., None]


def _vivid(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Any hue, with a value (as in HSV) between low and high."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0.15, 0.6), rng.uniform(low, high)
    return value * (1 - saturation * np.clip(2 - np.abs((hue + np.array([3, 1, 5])) % 6 - 3), 0, 1))


def _between(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """A colour between two neighbours of a palette."""
    first, mix = rng.integers(len(palette) - 1), rng.uniform()
    return np.clip((palette[first] * mix + palette[first + 1] * (1 - mix)) * rng.uniform(0.94, 1.06, 3), 0, 1)


def _ellipse(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return (np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2) - 1) * min(half_width, half_height)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, radius: float) -> np.ndarray:
    """A rectangle with round corners."""
    over_x, over_y = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2)
    return outside + np.minimum(np.maximum(over_x, over_y), 0) - radius
