"""The docs name what the code has: settings, metrics and errors."""

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


def pages() -> list[Path]:
    """Everything that is written for people."""
    found = [
        path for where in ("*", "docs/*", "checkpoints/*/*", "benchmarks/*/*") for path in ROOT.glob(f"{where}.md")
    ]
    assert len(found) >= 12
    return found


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
    """docs/service.md names each code that the service's sources hold, but for one that nobody receives."""
    sources = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    codes = set(re.findall(r'(?:ApiError\(\s*\d+,|_unavailable\()\s*"\w+",\s*"(\w+)"', sources))
    assert len(codes) > 15
    assert codes >= {errors.internal().code, errors.queue_full(1, 1).code, errors.key_queue_full(1, 1).code}
    for code in codes - {errors.client_left().code}:
        assert f"`{code}`" in read("docs/service.md"), code


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links: small letters, hyphens, no other marks."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    """Relative links name files that exist, and headings in them."""
    for path in pages():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
            page = path.parent / target if target else path
            assert page.exists(), f"{path}: {target}"
            assert not anchor or anchor in anchors(page), f"{path}: {target}#{anchor}"


def test_nothing_is_left_open() -> None:
    """No placeholder waits for a figure."""
    for path in pages():
        assert "<!--" not in path.read_text(), path.name
