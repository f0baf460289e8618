"""What the tests stand on: real processes, real sockets, and polling with a deadline.

Nothing here is a mock. `gateway` starts the gateway as its users do, `app` runs its application in
the test's own process, `simulator` starts a provider beside them, `raw` speaks HTTP by hand where a
client library would tidy up, `poll` waits for something to become true, `programs` finds the
system's programs.
"""
