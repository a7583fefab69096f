"""Smaller video models: blocks left out by the rule of VDMini (arXiv 2411.18375), or by choice."""
