"""Networks whose features are compared, each beside what builds its extractor, and the table of them."""
