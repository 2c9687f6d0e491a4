"""The one exception type whose message is meant for the user."""

from __future__ import annotations


class LightVLAError(Exception):
    """Bad input, told in one sentence: what was expected, what came, what to do.

    Commands print it without a traceback and exit with status 2; nodes log it and refuse the transition.
    """
