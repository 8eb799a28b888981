"""Paints portraits of faces that do not exist, each one different.

Shapes are implicit functions: negative inside, and about as large as the distance to the outline, so that dividing by
the width of a pixel antialiases the edge. Coordinates run from -1 to 1, x to the right and y down; colours are display
values.
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
        rng: the source of every random choice.
        side: pixels per side.

    Returns:
        display values, float64, 0...1, (side, side, 3).
    """
    axis = (np.arange(side) + 0.5) * 2 / side - 1
    page_x, page_y = np.meshgrid(axis, axis)
    canvas = _Canvas(_wall(rng, page_x, page_y))
    head = _Head(rng, page_x, page_y)
    _paint_back_hair(canvas, head)
    _paint_shoulders_and_neck(canvas, rng, head, page_x, page_y)
    _paint_skin(canvas, rng, head)
    eyes_apart, eye_y = _paint_eyes(canvas, rng, head)
    _paint_nose(canvas, rng, head)
    _paint_mouth(canvas, rng, head)
    _paint_front_hair(canvas, rng, head)
    if rng.uniform() < 0.18:
        _paint_glasses(canvas, rng, head, eyes_apart, eye_y)
    return np.clip(canvas.pixels, 0, 1)


class _Canvas:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.pixel = 1 / len(pixels)

    def paint(self, colour: np.ndarray, distance: np.ndarray, opacity: float = 1.0, soft: float = 0.0) -> None:
        """Lay a colour, (3,) or (side, side, 3), over the inside of a shape, with an edge `soft` wide or one pixel."""
        edge = max(soft, self.pixel)
        inside = distance < edge
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            cover = np.clip(0.5 - 0.5 * distance[box] / edge, 0, 1)
            under, over = self.pixels[box], colour[box] if colour.ndim == 3 else colour
            under += (opacity * cover * cover * (3 - 2 * cover))[..., None] * (over - under)


class _Head:
    """The person's colours, the light, the hair style, and the head's own coordinates.

    x and y are moved, tilted and scaled with the head; face_x is x, shifted as the head turns; oval is x, widened
    towards the chin, so that a shape in it narrows there. skull is the head's shape, wide and tall half its width and
    height.
    """

    def __init__(self, rng: np.random.Generator, page_x: np.ndarray, page_y: np.ndarray) -> None:
        self.skin, self.iris, self.clothes = _between(rng, SKIN), _between(rng, IRIS), _vivid(rng, 0.3, 0.9)
        self.hair = HAIR[rng.choice(len(HAIR))] * rng.uniform(0.8, 1.2)
        self.shade, self.lips = self.skin * [0.72, 0.60, 0.58], self.skin * [0.86, 0.56, 0.56]
        self.from_side, from_above = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.6)
        self.lit_side = np.sign(self.from_side)

        tilt, scale, self.turn = rng.normal(0, 0.07), rng.uniform(0.86, 1.08), rng.uniform(-0.07, 0.07)
        self.moved_x, moved_y = page_x - rng.normal(0, 0.06), page_y - rng.uniform(-0.16, 0.0)
        self.x = (self.moved_x * np.cos(tilt) + moved_y * np.sin(tilt)) / scale
        self.y = (moved_y * np.cos(tilt) - self.moved_x * np.sin(tilt)) / scale
        self.face_x = self.x - self.turn
        self.wide, self.tall = rng.uniform(0.40, 0.46), rng.uniform(0.54, 0.60)
        self.oval = self.x / (1 - rng.uniform(0.10, 0.28) * np.clip(self.y / self.tall, 0, 1.2) ** 2)
        self.skull = _ellipse(self.oval, self.y, self.wide, self.tall)
        u, v = self.oval / self.wide, self.y / self.tall
        normal_z = np.sqrt(np.clip(1 - 0.8 * (u * u + v * v), 0.05, 1))
        light = 0.35 + 0.85 * (0.9 * (u * self.from_side - v * from_above) + 0.75 * normal_z)
        self.light = np.clip(light, 0, 1.15)[..., None]

        self.style = rng.choice(["bald", "short", "bob", "long"], p=[0.07, 0.38, 0.2, 0.35])
        self.volume, phase = rng.uniform(0.06, 0.13), rng.uniform(0, 2 * np.pi)
        self.curl = rng.uniform(0.0, 0.02) * np.sin(rng.integers(9, 17) * np.arctan2(self.y, self.x) + phase)
        strands = (
            0.9
            + 0.05 * np.sin(31 * u + 9 * v + phase) * np.sin(17 * u - 6 * v)
            + 0.2 * np.clip(self.from_side * u - v - 0.5, 0, 1)
        )
        self.locks = np.clip(self.hair * strands[..., None], 0, 1)


def _paint_back_hair(canvas: _Canvas, head: _Head) -> None:
    """Long hair, behind the face."""
    if head.style in ("bob", "long"):
        ends = 1.05 if head.style == "long" else 0.52
        shape = _box(head.x, head.y - (ends - 0.62) / 2, head.wide + head.volume, (ends + 0.62) / 2, 0.42)
        canvas.paint(0.72 * head.locks, shape + head.curl)


def _paint_shoulders_and_neck(
    canvas: _Canvas, rng: np.random.Generator, head: _Head, page_x: np.ndarray, page_y: np.ndarray
) -> None:
    x, y, skin, clothes = head.x, head.y, head.skin, head.clothes
    folds = 0.86 + 0.14 * np.clip(1.5 * page_x * head.from_side + 0.4, -1, 1) - 0.25 * np.clip(page_y - 0.75, 0, 1)
    shoulders = rng.uniform(1.30, 1.38)
    canvas.paint(
        clothes * folds[..., None],
        _box((page_x + head.moved_x) / 2, page_y - shoulders, rng.uniform(0.72, 0.92), 0.72, 0.38),
    )
    neck = rng.uniform(0.19, 0.25)
    canvas.paint(clothes * 0.72, _ellipse(x, y - 0.80, neck + 0.11, 0.16))
    canvas.paint(skin * 0.86, _box(x, y - 0.58, neck, 0.30, 0.10))
    canvas.paint(skin * 0.86, _ellipse(x, y - 0.78, neck + 0.06, 0.13))
    chin = np.maximum(_ellipse(head.oval, y - 0.12, head.wide * 0.95, head.tall), np.abs(x) - neck)
    canvas.paint(head.shade * 0.80, chin, 0.75, 0.06)


def _paint_skin(canvas: _Canvas, rng: np.random.Generator, head: _Head) -> None:
    """Ears, face, cheeks, and some beards."""
    x, y, skin, shade = head.face_x, head.y, head.skin, head.shade
    for s in (-1, 1):
        canvas.paint(skin * 0.88, _ellipse(head.x - s * head.wide, y - 0.03, 0.06, 0.115))
        canvas.paint(shade, _ellipse(head.x - s * head.wide, y - 0.03, 0.025, 0.065), 0.6, 0.02)
    canvas.paint(np.clip(shade + (skin * 1.03 - shade) * head.light, 0, 1), head.skull)
    for s in (-1, 1):
        canvas.paint(skin * [1.0, 0.72, 0.70], _ellipse(x - s * 0.23, y - 0.17, 0.11, 0.09), 0.4, 0.09)
    if rng.uniform() < 0.2:
        beard = np.maximum(head.skull, 0.24 - 1.2 * x * x - y)
        canvas.paint(0.9 * head.locks, beard, rng.uniform(0.4, 0.9), 0.04)


def _paint_eyes(canvas: _Canvas, rng: np.random.Generator, head: _Head) -> tuple[float, float]:
    """Eyes and brows; returns half the distance of the eyes, and their height."""
    iris, hair, skin = head.iris, head.hair, head.skin
    apart, eye_y = rng.uniform(0.165, 0.195), rng.uniform(-0.05, 0.01)
    eye_w, eye_h = rng.uniform(0.078, 0.096), rng.uniform(0.034, 0.05)
    gaze, slant = rng.uniform(-0.018, 0.018), rng.uniform(-0.12, 0.12)
    brow_y, arch, thick = rng.uniform(0.085, 0.12), rng.uniform(0.01, 0.036), rng.uniform(0.012, 0.022)
    for s in (-1, 1):
        x = head.face_x - s * apart
        y = head.y - eye_y - s * slant * x
        lid = eye_h * (1 - (x / eye_w) ** 2)
        canvas.paint(head.shade, _ellipse(x, y + 0.015, eye_w + 0.05, eye_h + 0.05), 0.45, 0.05)
        canvas.paint(WHITE, np.abs(y) - lid)
        for colour, radius in ((iris * 0.6, 0.042), (iris * 1.15, 0.034), (iris * 0.1, 0.018)):
            canvas.paint(colour, np.maximum(np.abs(y) - lid, _ellipse(x - gaze, y, radius, radius)))
        canvas.paint(np.ones(3), _ellipse(x - gaze - 0.016 * head.lit_side, y + 0.016, 0.010, 0.010), 0.9)
        canvas.paint(hair * 0.25, np.maximum(np.abs(y + lid) - 0.010, np.abs(x) - eye_w), 0.9)
        brow = np.abs(y + brow_y + arch * (1 - (x / 0.12) ** 2)) - thick * (1 - 4 * s * x)
        canvas.paint(0.15 * skin + 0.6 * hair, np.maximum(brow, np.abs(x) - 0.115), 0.85, 0.008)
    return apart, eye_y


def _paint_nose(canvas: _Canvas, rng: np.random.Generator, head: _Head) -> None:
    """One side in the shade, a lit ridge, two nostrils; it protrudes, so it shifts further as the head turns."""
    x, y, shade, lit_side = head.face_x - 0.5 * head.turn, head.y, head.shade, head.lit_side
    tip = rng.uniform(0.17, 0.22)
    canvas.paint(shade, _ellipse(x + lit_side * 0.035, y - tip / 2 - 0.02, 0.022, tip / 2), 0.5, 0.03)
    canvas.paint(shade, _ellipse(x, y - tip - 0.015, 0.062, 0.022), 0.7, 0.025)
    ridge = _ellipse(x - lit_side * 0.008, y - tip + 0.045, 0.018, 0.06)
    canvas.paint(np.minimum(head.skin * 1.12, 1), ridge, 0.6, 0.03)
    for s in (-1, 1):
        canvas.paint(shade * 0.55, _ellipse(x - s * 0.03, y - tip - 0.018, 0.013, 0.008), 0.8, 0.008)


def _paint_mouth(canvas: _Canvas, rng: np.random.Generator, head: _Head) -> None:
    """Two lips about one line, bent by the smile; some smiles show teeth."""
    x, y, lips = head.face_x, head.y, head.lips
    mouth_w, mouth_y = rng.uniform(0.10, 0.15), rng.uniform(0.325, 0.365)
    smile, full = rng.uniform(-0.01, 0.06), rng.uniform(0.022, 0.04)
    along = x / mouth_w
    across, taper = y - mouth_y + smile * (along**2 - 0.3), np.clip(1 - along**2, -1, 1)
    canvas.paint(lips * 0.92, np.maximum(across, -across - full * taper * (0.8 - 0.2 * np.cos(5 * along))), 1, 0.006)
    canvas.paint(lips * 1.06, np.maximum(-across, across - 1.25 * full * taper), 1, 0.006)
    if smile > 0.03 and rng.uniform() < 0.4:
        canvas.paint(WHITE, np.abs(across) - 0.5 * full * taper)
    canvas.paint(lips * 0.45, np.maximum(np.abs(across) - 0.007, np.abs(x) - mouth_w), 0.7)
    canvas.paint(head.shade, _ellipse(x, y - mouth_y - 0.085, 0.07, 0.012), 0.5, 0.03)


def _paint_front_hair(canvas: _Canvas, rng: np.random.Generator, head: _Head) -> None:
    """The crown, down to a parted hairline over the forehead and, depending on the style, beside the face."""
    if head.style == "bald":
        return
    x, y, volume = head.face_x + head.turn, head.y, head.volume
    part, sweep = rng.uniform(-0.25, 0.25), rng.uniform(0.2, 0.7)
    hairline = y - rng.uniform(-0.34, -0.22) - sweep * (x - part) ** 2 + 0.06 * np.exp(-((x - part) ** 2) / 0.003)
    crown = _ellipse(x, y + 0.03, head.wide + 0.8 * volume, head.tall + 0.7 * volume) + head.curl
    sides = np.minimum(hairline, -_ellipse(head.oval, y - 0.03, head.wide * 0.93, head.tall * 0.98))
    front = np.maximum.reduce([crown, y - {"short": 0.02, "bob": 0.42, "long": 0.55}[head.style], sides])
    canvas.paint(head.shade * 0.8, np.maximum(front - 0.03, head.skull), 0.5, 0.03)
    canvas.paint(head.locks, front)


def _paint_glasses(canvas: _Canvas, rng: np.random.Generator, head: _Head, eyes_apart: float, eye_y: float) -> None:
    x, y = head.face_x + head.turn, head.y
    frame = np.full(3, rng.choice([0.08, 0.35]))
    for s in (-1, 1):
        lens = _box(x - s * eyes_apart - head.turn, y - eye_y - 0.01, 0.135, 0.095, 0.06)
        canvas.paint(frame, np.abs(lens) - 0.010)
    bridge = np.maximum(np.abs(y - eye_y) - 0.010, np.abs(x - head.turn) - (eyes_apart - 0.13))
    canvas.paint(frame, bridge)


def _wall(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The background: a gradient between two colours, with a few lights out of focus, darker in the corners."""
    one, other, angle = _vivid(rng, 0.45, 0.9), _vivid(rng, 0.3, 0.8), rng.uniform(0, 2 * np.pi)
    wall = one + (other - one) * np.clip(0.5 + 0.4 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None]
    for _ in range(rng.integers(0, 6)):
        place_x, place_y, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.08, 0.25)
        disc = np.clip(0.5 - _ellipse(x - place_x, y - place_y, radius, radius) / 0.08, 0, 1)
        wall += rng.uniform(0.06, 0.2) * disc[..., None] * (1 - wall)
    return wall * (1 - 0.16 * (x * x + y * y))[..., None]


def _vivid(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A colour of any hue, with a value (as in HSV) between low and high."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0.15, 0.6), rng.uniform(low, high)
    return value * (1 - saturation * np.clip(2 - np.abs((hue + np.array([3, 1, 5])) % 6 - 3), 0, 1))


def _between(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """A colour between two neighbours of a palette."""
    first, mix = rng.integers(len(palette) - 1), rng.uniform()
    return np.clip((palette[first] * mix + palette[first + 1] * (1 - mix)) * rng.uniform(0.94, 1.06, 3), 0, 1)


def _ellipse(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return (np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2) - 1) * min(half_width, half_height)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, radius: float) -> np.ndarray:
    """A rectangle with rounded corners."""
    over_x, over_y = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2)
    return outside + np.minimum(np.maximum(over_x, over_y), 0) - radius
