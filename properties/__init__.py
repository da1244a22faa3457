"""The laws: what every implementation of an operator must obey, one file each. Files here are found by scanning."""
