"""The demonstration: a procedural, captioned video set, what reads it, and what is measured on it. It imports the
library, the library never imports it: it hands itself in by names in tables.
"""
