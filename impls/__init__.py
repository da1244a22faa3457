"""The accused: implementations, one file per backend and family. Files here are found by scanning."""
