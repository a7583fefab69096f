"""Which clips are looked at and how, and the files that say so."""
