"""Gradient stability: seven diagnostics of an operator's mechanism, of a kernel, and of a block that is trained.

One diagnostic is one file, D1 to D7: gain, supremum, spectrum, growth_exponent, layers, dilution, finite. Each asks a target
through a `Probe` (a kernel) or trains it (a module), and returns a `Finding`. What a kernel is held to follows from its
operator's mechanism (``linverify.mechanism``); where that promises no bound, growth is a finding and no fault.

Sources: Qin et al. 2022, arXiv:2210.10340 (unbounded gradients, dilution); Shleifer et al. 2021, arXiv:2110.09456 (layers).
"""
