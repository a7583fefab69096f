"""Clips on disk, precomputed latents, and files that appear whole."""
