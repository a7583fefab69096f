"""Measuring models: attribute adherence on sprites, reconstruction."""
