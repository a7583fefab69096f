"""What sprites can be, and the words that captions have for it.

MOTION_WORDS["orbit"][0][0] == "orbits around the center"
"""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 30),
    "green": (30, 165, 50),
    "cyan": (40, 215, 225),
    "blue": (40, 70, 235),
    "purple": (135, 40, 190),
    "pink": (255, 125, 195),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "ring": ("ring", "hoop"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus sign"),
    "crescent": ("crescent", "moon"),
}
SIZES = {"small": 0.14, "medium": 0.18, "large": 0.22}  # circumscribed radius as a fraction of the shorter side
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}
# motion -> phrases for one object, phrases for two
MOTION_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{
        name: (
            (f"moves {where}", f"slides {where}", f"travels {where}"),
            (f"move {where} together", f"slide {where} together", f"travel {where} together"),
        )
        for name, where in {
            "left": "to the left",
            "right": "to the right",
            "up": "up",
            "down": "down",
            "up-left": "up and to the left",
            "up-right": "up and to the right",
            "down-left": "down and to the left",
            "down-right": "down and to the right",
        }.items()
    },
    "bounce": (("bounces", "bounces up and down", "hops in place"), ("bounce together", "bounce up and down")),
    "orbit": (
        ("orbits around the center", "moves in a circle", "circles around the middle"),
        ("orbit around the center", "move in a circle", "circle around the middle"),
    ),
    "rotate": (("rotates", "spins in place", "rotates in place"), ("rotate", "spin in place")),
    "grow": (("grows", "gets bigger", "becomes larger"), ("grow", "get bigger")),
    "shrink": (("shrinks", "gets smaller", "becomes smaller"), ("shrink", "get smaller")),
    "still": (("stays still", "does not move", "rests"), ("stay still", "do not move")),
    "pan-left": (("while the camera pans left",), ("while the camera pans left",)),
    "pan-right": (("while the camera pans right",), ("while the camera pans right",)),
}
SHAPES = tuple(SHAPE_WORDS)
MOTIONS = tuple(MOTION_WORDS)
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("on a plain background", "on an empty background"),
    "stripes": ("on a striped background", "in front of stripes"),
    "checker": ("on a checkered background", "in front of a checkerboard"),
    "dots": ("on a dotted background", "in front of dots"),
    "waves": ("on a wavy background", "in front of waves"),
}
ROTATION_INVARIANT = ("circle", "ring")  # turning these shows nothing, so they never carry the motion "rotate"
