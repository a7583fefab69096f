"""Which frame of its clip a content frame nearly is, where it is one: what `frame_weights` of an autoencoder say.

anchor([0.1, 0.1, 0.7, 0.1], frames=8)  # 4
"""

ONE_FRAME = 0.5  # least weight of a frame that the content frame nearly is


def anchor(weights: list[float], frames: int) -> int:
    """Number of the frame that the content frame nearly is, of so many; `weights` are of a clip of any length."""
    return max(range(len(weights)), key=weights.__getitem__) * frames // len(weights)
