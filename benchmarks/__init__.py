"""What the gateway costs beside the relay that a person would write in an afternoon.

`make bench` measures CPU, memory, start-up time and the delay of streamed events, for the
gateway, for the gateway with its metering switched off, and for `naive`. Provider and load
generator are processes of their own: only the workers' CPU time counts.
"""
