"""An OpenAI-compatible provider that makes up its responses and says so in each of them.

It is the `demo` provider of a gateway without provider keys, and the upstream of the tests and of
the benchmark. Invariant: it imports nothing of the gateway, so that the two can agree only through
the protocol.

The path of a request, in order:

* `server`        accepts the connection and handles the request
* `http`          reads it from the socket, byte for byte, hashing bodies as they stream in
* `instructions`  what the request asks for with `x-sim`: the response, and the faults
* `api`           makes up the response; knows the dialects, and no sockets
* `response`      what is sent, with status and headers as instructed
* `framing`, `sending`   send it, whole or event by event, or stop early
* `client`        waits on behalf of one request and notices at once when the client disconnects
* `ledger`        what arrived and what was really sent, to compare with what others counted
"""
