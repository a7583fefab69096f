"""Clips on disk, the procedural set `sprites`, and precomputed latents."""
