"""fla-core 0.6.0: fla.ops.delta_rule.parallel cannot be imported.

    python fla_parallel_delta_rule_import.py        needs torch and fla-core, no GPU

The module imports `fwd_prepare_T` from fla.ops.delta_rule.wy_fast, which has no such function.
"""

import importlib


def main() -> None:
    """Print what the import raises."""
    try:
        importlib.import_module("fla.ops.delta_rule.parallel")
    except ImportError as error:
        print(f"ImportError: {error}")
    else:
        print("imported")


if __name__ == "__main__":
    main()
