"""One operator, one file: the mathematics and nothing else. Files here are found by scanning."""
