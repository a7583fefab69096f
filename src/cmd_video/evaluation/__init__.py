"""Measuring models: distances between sets of clips, pairs, captions and reconstruction, by protocol."""
