"""Outlines of the shapes that `sprites` draws, as signed distances: pure functions of coordinates.

inside = signed_distance("star", x, y) < 0
"""

import math

import numpy as np


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of circumscribed radius 1, negative inside; exact near most of the edge.

    Args:
        shape: circle, ring, square, triangle, star, heart, cross or crescent.
        x: coordinates to the right, of any array shape.
        y: coordinates downwards, of the same shape.

    Raises:
        ValueError: the shape is not known.
    """
    if shape == "circle":
        return np.hypot(x, y) - 0.9
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.22
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.76
    if shape == "triangle":  # three half planes, point up
        return np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.5
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 0.95, ay - 0.32), np.maximum(ax - 0.32, ay - 0.95))
    if shape == "crescent":  # a disc with a bite to the right
        return np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.5, y))
    if shape == "heart":  # a square on its corner and two discs on its upper sides
        ax, up = np.abs(x), -(y - 0.12)
        square = (ax + np.abs(up)) * 0.7071 - 0.62
        return np.minimum(square, np.hypot(ax - 0.4384, up - 0.4384) - 0.62)
    if shape == "star":  # fold into one of ten equal sectors; the edge runs from a tip at radius 1 to a notch
        sector = 2 * math.pi / 5
        folded = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
        radius = np.hypot(x, y)
        along, across = radius * np.cos(folded), radius * np.sin(folded)
        notch_x, notch_y = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
        length = math.hypot(1 - notch_x, notch_y)
        return ((along - 1) * notch_y + across * (1 - notch_x)) / length
    raise ValueError(f"shape: {shape!r} has no outline")
