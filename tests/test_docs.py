"""The docs name what the code has: settings, metrics, errors, and README's examples run word for word."""

import re
from pathlib import Path

from prometheus_client.registry import CollectorRegistry

from service import errors
from service.metrics import Metrics
from service.settings import markdown

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    """One file of the repository."""
    return (ROOT / name).read_text()


def test_settings_table_is_the_code() -> None:
    """docs/service.md has the table that the settings generate."""
    assert markdown() in read("docs/service.md")


def test_every_metric_is_documented() -> None:
    """docs/operations.md names each metric, as Prometheus shows it."""
    metrics = Metrics(CollectorRegistry())
    families = list(metrics.registry.collect())
    assert len(families) > 20
    text = read("docs/operations.md")
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text, name


def test_every_error_code_is_documented() -> None:
    """docs/service.md names each code."""
    made = [
        errors.invalid("x"),
        errors.model_not_found("x", []),
        errors.not_found(),
        errors.method_not_allowed({}),
        errors.too_large(1),
        errors.queue_full(1, 1),
        errors.shutting_down(),
        errors.model_loading(),
        errors.not_stepping(),
        errors.internal(),
    ]
    for error in made:
        assert f"`{error.code}`" in read("docs/service.md"), error.code


def test_links_lead_somewhere() -> None:
    """Relative links of README and docs name files that exist."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_nothing_is_left_open() -> None:
    """No placeholder waits for a figure."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("checkpoints/*/README.md")]
    assert len(pages) >= 7
    for path in [*pages, *ROOT.glob("benchmarks/*/README.md")]:
        assert "<!--" not in path.read_text(), path.name
