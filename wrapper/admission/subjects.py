"""The subjects of one configuration: which limits hold for a key, and which for a provider."""

from __future__ import annotations

from collections.abc import Iterator

from wrapper.config import ApiKey, Group, Provider, Settings
from wrapper.metering import PICO
from wrapper.store.limits import Limits, Subject


class Subjects:
    """Built once per configuration; only what has limits is in it."""

    def __init__(self, settings: Settings) -> None:
        members: dict[str, list[str]] = {name: [] for name in settings.groups}
        for key in settings.keys.values():
            if key.group in members:
                members[key.group].append(key.name)
        groups = {
            name: Subject(f"group:{name}", _limits(group), tuple(members[name]))
            for name, group in settings.groups.items()
        }
        self._by_key: dict[str, tuple[Subject, ...]] = {}
        for key in settings.keys.values():
            own = Subject(f"key:{key.name}", _limits(key))
            both = (own, groups[key.group]) if key.group in groups else (own,)
            limited = tuple(subject for subject in both if subject.limits)
            if limited:
                self._by_key[key.name] = limited
        self._with_budget = {
            name
            for name, subjects in self._by_key.items()
            if any(subject.limits.budget is not None for subject in subjects)
        }
        providers = {
            name: Subject(f"provider:{name}", _limits(provider))
            for name, provider in settings.providers.items()
        }
        self._providers = {name: subject for name, subject in providers.items() if subject.limits}
        self.any = bool(self._by_key or self._providers)

    def __iter__(self) -> Iterator[Subject]:
        """Every subject once: keys, groups, providers."""
        seen = dict.fromkeys(s for subjects in self._by_key.values() for s in subjects)
        yield from seen
        yield from self._providers.values()

    def of_key(self, name: str) -> tuple[Subject, ...]:
        """The key itself and its group, as far as they have limits."""
        return self._by_key.get(name, ())

    def has_budget(self, name: str) -> bool:
        """Whether the key itself or its group has a budget."""
        return name in self._with_budget

    def of_provider(self, name: str) -> Subject | None:
        """The provider's account, where it has limits."""
        return self._providers.get(name)


def _limits(holder: ApiKey | Group | Provider) -> Limits:
    budget = holder.budget_usd
    return Limits(
        holder.requests_per_minute,
        holder.tokens_per_minute,
        holder.max_concurrent,
        None if budget is None else int(budget * PICO),
        holder.budget_period,
        getattr(holder, "enforce", True),  # an account's limits are always enforced
    )
