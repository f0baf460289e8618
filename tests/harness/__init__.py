"""What the tests stand on: real processes, real sockets, and polling with a deadline.

Nothing here is a mock. `gateway` starts the gateway as its users do, `simulator` starts a
provider beside it, `raw` speaks HTTP by hand where a client library would tidy up, `poll`
waits for something to become true, `programs` finds the system's programs.
"""
