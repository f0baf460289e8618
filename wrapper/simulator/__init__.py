"""An OpenAI-compatible provider that makes up its answers and says so in each of them.

One program, three uses: the ``demo`` provider of a gateway without keys, the upstream of the
tests and the upstream of the benchmark. It stands alone: nothing of the gateway is imported
here, so the two can only agree by speaking the same protocol.

How a request passes through, one module each:

* ``http``     reads it from the socket, byte for byte, hashing bodies as they stream
* ``faults``   the orders it carries (`x-sim`): what shall be answered, and what shall go wrong
* ``answers``  makes up the reply; knows the dialects, and nothing of sockets
* ``wire``     sends the reply as ordered, whole or event by event, or breaks it off
* ``caller``   waits on behalf of one request and notices at once when the other side leaves
* ``ticker``   the one clock that wakes all waiting streams
* ``books``    what arrived and what was really sent, to be compared with what others counted
"""
