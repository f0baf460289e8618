"""The shipped configuration of gunicorn, and one change in its worker, which BENCHMARK_HOOK names.

no-recent       the usage of the last requests is not kept (there is no setting for that)
profile:FILE    from SIGUSR2 to SIGUSR2 the worker counts in FILE where its CPU time goes
                (`profile`)
"""

import os
import runpy
from pathlib import Path
from typing import Any

_shipped = runpy.run_path(str(Path(__file__).resolve().parents[1] / "config" / "gunicorn.py"))
globals().update({name: value for name, value in _shipped.items() if not name.startswith("__")})
_name, _, _argument = os.environ["BENCHMARK_HOOK"].partition(":")


def post_worker_init(worker: Any) -> None:
    """In the worker, before its first request."""
    if _name == "no-recent":
        from wrapper.proxy import finalize

        assert "recent_request" in vars(finalize)
        vars(finalize)["recent_request"] = lambda record: None
    else:
        from benchmarks import sampler

        sampler.install(Path(_argument))
    _shipped["post_worker_init"](worker)
