"""The subjects of one configuration: which limits hold for a key, and which for a provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from wrapper.config import ApiKey, Group, Provider, Settings
from wrapper.metering import PICO
from wrapper.steps import Pause, in_steps, no_pause
from wrapper.store.limits import Limits, Subject


class Place(NamedTuple):
    """What holds for a key's requests at one provider. `account` is the last of the subjects."""

    subjects: tuple[Subject, ...]
    account: Subject | None
    need_estimate: bool


class KeyLimits(NamedTuple):
    """What holds for the requests of one key.

    `own` is without any account, `at` has the providers whose accounts have limits. `enforced`: a
    budget among the key's own is.
    """

    own: Place
    at: Mapping[str, Place]
    has_budget: bool
    enforced: bool


class Subjects:
    """Built once per configuration; only what has limits is in it.

    `pause` is made now and then while there are many keys.
    """

    def __init__(self, settings: Settings, pause: Pause = no_pause) -> None:
        members: dict[str, list[str]] = {name: [] for name in settings.groups}
        for key in in_steps(settings.keys.values(), pause):
            if key.group in members:
                members[key.group].append(key.name)
        groups = {
            name: Subject(f"group:{name}", _limits(group), tuple(members[name]))
            for name, group in settings.groups.items()
        }
        providers = {
            name: Subject(f"provider:{name}", _limits(provider))
            for name, provider in settings.providers.items()
        }
        self._providers = {name: subject for name, subject in providers.items() if subject.limits}
        self._by_key: dict[str, KeyLimits] = {}
        for key in in_steps(settings.keys.values(), pause):
            own = Subject(f"key:{key.name}", _limits(key))
            both = (own, groups[key.group]) if key.group in groups else (own,)
            limited = tuple(subject for subject in both if subject.limits)
            if limited or self._providers:
                self._by_key[key.name] = _key_limits(limited, self._providers)
        self.any = bool(self._by_key or self._providers)

    def __iter__(self) -> Iterator[Subject]:
        """Every subject once: keys, groups, providers."""
        # The keys of a group have the same one. (To compare them takes ten times as long.)
        seen = {id(s): s for key in self._by_key.values() for s in key.own.subjects}
        yield from seen.values()
        yield from self._providers.values()

    def for_key(self, name: str) -> KeyLimits | None:
        """What holds for the key's requests; None where nothing does at any provider."""
        return self._by_key.get(name)

    def of_key(self, name: str) -> tuple[Subject, ...]:
        """The key itself and its group, as far as they have limits."""
        found = self._by_key.get(name)
        return found.own.subjects if found else ()

    def has_budget(self, name: str) -> bool:
        """Whether the key itself or its group has a budget."""
        found = self._by_key.get(name)
        return found is not None and found.has_budget

    def of_provider(self, name: str) -> Subject | None:
        """The provider's account, where it has limits."""
        return self._providers.get(name)


def _key_limits(own: tuple[Subject, ...], providers: Mapping[str, Subject]) -> KeyLimits:
    def place(*more: Subject) -> Place:
        subjects = (*own, *more)
        estimate = any(subject.limits.need_estimate for subject in subjects)
        return Place(subjects, more[0] if more else None, estimate)

    budgets = [subject.limits for subject in own if subject.limits.budget is not None]
    return KeyLimits(
        place(),
        {name: place(subject) for name, subject in providers.items()},
        bool(budgets),
        any(limits.enforce for limits in budgets),
    )


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
