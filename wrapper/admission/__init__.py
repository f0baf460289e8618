"""Limits and budgets: the one place where a request is admitted and its reservation settled."""
