"""Adapters: the outside world behind the ports, one third party each.

One rule: foreign errors are translated here, and foreign types stop here.
Adapters know the core and the ports, but not the runtime that uses them.
"""
