"""Numbers: distances between sets of features, pairs, captions, reconstruction."""
