"""Devices, availability and the virtual clock: how long rounds take, and which clients take part.

    devices.py, device_trace.py               devices: computed, or from a file
    availability.py, availability_trace.py    presence of clients: computed, or from a file
    section.py, simulated_system.py           the section `system:`; durations, drop-outs and energy drawn from it
    server_mode.py                            base of the server modes:
        synchronous.py, round_trip.py             rounds with deadline, over-selection and partial work
        asynchronous.py, clock.py                 buffered and tiered servers, and their clock
        clock_state.py, event_loop.py, dispatch_draws.py, presence_cache.py    parts of the clock
    metrics.py, flops.py                      fairness of participation; measured cost of training

All functions are pure: values in, values out, each draw addressed. Nothing here trains, sends or reads the real clock.
"""
