"""Smaller video models: blocks left out, and the quality won back (VDMini, arXiv 2411.18375)."""
