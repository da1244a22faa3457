"""The templates of pages, and what may be called in every one of them."""

from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from linverify.reports.text import words


def templates(filters: Mapping[str, Callable[..., str]]) -> Environment:
    """Return the environment of a page with further filters; a name that it does not know is an error."""
    environment = Environment(
        loader=PackageLoader("linverify.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"words": words, **filters}
    return environment
