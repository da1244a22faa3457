"""What a reader of a result should know besides its table: by which standard it was judged."""

from collections.abc import Mapping, Sequence

from linverify.bench import Bench
from linverify.certificate import bound_note
from linverify.emulated import emulates


def notes(bench: Bench, dtypes: Sequence[str], settled: Mapping[str, int]) -> list[str]:
    """Notes on the judgement of one target.

    Args:
        bench: of the target.
        dtypes: that were asked.
        settled: results judged, by what settled them.
    """
    found = [*bound_note(bench.bounds), *settled_note(settled)]
    if bench.single:
        found.append(
            "fp64 cases are right to float32 only: the kernel computes in float32 inside, and was judged by that"
        )
    if bench.declaration is not None:
        known = f"its declared recipe, {bench.declaration.text}"
        if emulates(bench.operator):
            found.append(f"{known}, was not used: {bench.operator.name} has no rounding points to declare")
        else:
            found.append(f"judged by {known}: sharper than the usual rule")
            return found
    if "fp32" in dtypes and bench.device.startswith("cuda"):
        cls = (
            "IEEE arithmetic, as claimed"
            if bench.claims.get("fp32") == "ieee"
            else "truncated TF32 products; claim fp32=ieee for a stricter judgement"
        )
        found.append(f"fp32 is judged as {cls}")
    return found


def settled_note(settled: Mapping[str, int]) -> list[str]:
    """What a report says of how dear the judgement was; [] where nothing was judged."""
    total = sum(settled.values())
    if not total:
        return []
    cheap = total - settled.get("realised", 0)
    return [
        f"{cheap} of {total} results were settled by formulas for rounding; simulated correct kernels judged the rest"
    ]
