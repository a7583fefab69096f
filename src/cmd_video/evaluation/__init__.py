"""Measuring models: distances between sets of clips, pairs, captions, adherence and reconstruction, by protocol."""
