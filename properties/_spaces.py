"""Parts of the case space that several properties share."""

from linverify.property import Space

FINITE_GATES = ("none", "mild", "production", "strong", "reset", "tiny")
"""Every gate but minus infinity, which many chunkwise forms turn into NaN and which is only reported."""

CALM_GATES = ("none", "mild", "production")
"""Gates that leave a memory of many tokens, so that a wrong term is not decayed away."""

CALM = ("normal", "unit")
"""Operands without outliers, for laws about structure rather than range."""

BACKWARD = ("o", "state", "both")
"""What is back-propagated where the pattern of the upstream gradient is part of the question."""

SHORT = 192
"""Largest T for laws about structure: several chunks and a ragged tail; long sequences are for the laws about accuracy."""

HYGIENE = Space(max_T=SHORT, packed=None, cotangents=("none", "both"), gates=CALM_GATES)
"""Where laws about memory and manners look: with and without gradients. They share cases, so each costs a look at a result."""

HYGIENE_WEIGHT = 2.0
"""Enough cases that both directions and the optional arguments are among them even in the shortest run."""
