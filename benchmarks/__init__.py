"""Compares the cost of the gateway with a minimal relay (`naive`).

`make bench` measures CPU, memory, start-up time and the delay of streamed events, for the
gateway, for the gateway with metering off, and for `naive`. Provider and load generator are
processes of their own: only the workers' CPU time counts.
"""
