"""Hypothesis settings of all tests of guestsim."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "guestsim",
    deadline=None,
    derandomize=True,
    max_examples=40,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("guestsim")
