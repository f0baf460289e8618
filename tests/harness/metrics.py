"""A scrape of `/metrics`, parsed by Prometheus' own client and easy to ask."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Metrics:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self.samples = [s for family in self.families.values() for s in family.samples]

    def find(self, name: str, /, **labels: str) -> list[Sample]:
        """The samples of that name whose labels include `labels`."""
        wanted = labels.items()
        return [s for s in self.samples if s.name == name and wanted <= s.labels.items()]

    def value(self, name: str, /, **labels: str) -> float:
        """The sum of the samples that `find` gives; 0 where there is none."""
        return sum(sample.value for sample in self.find(name, **labels))

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by the values of `labels`, as PromQL's `sum by (…)`."""
        sums: dict[tuple[str, ...], float] = {}
        for sample in self.find(name):
            at = tuple(sample.labels.get(label, "") for label in labels)
            sums[at] = sums.get(at, 0.0) + sample.value
        return sums
