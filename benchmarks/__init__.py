"""What the gateway costs and how late it is, beside other relays: `make bench`, in one run.

* `__main__`    what is measured, in order; writes `RESULTS.md` and `results.json`
* `variants`    the gateway with and without each feature, an older version, the naive relay
* `peers`       relays of others, as far as they are installed
* `measures`    the measurements: slices of load that take turns
* `driver`      the load generator, closed and open loop
* `machine`     clocks of processes, stolen time, cores
* `summary`     numbers out of slices
* `ledgers`     who counts right: the provider's ledger beside a relay's own
* `sampler`     where a worker's CPU time goes (`hooked_gunicorn` puts it there)
* `check`       `make bench-check`: is it worse than the last committed ratios
* `report`      the tables
* `attacks`     what one party does to all others; a command of its own
"""
