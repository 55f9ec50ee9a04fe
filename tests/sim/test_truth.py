"""What the options say of providers is read as it is meant, and what cannot be is told with its value."""

import pytest

from headgate.cli.simulation.told import truth_told
from headgate.cli.simulation.truth import read_truth
from headgate.core.errors import CallerError
from headgate.sim.provider import Fault, Outage, Terms, Truth


def read(*, limits=(), outages=(), faults=(), tells=True) -> Truth:
    return read_truth(limits, outages, faults, tells=tells)


def test_without_options_providers_are_as_configured():
    assert read() == Truth()
    assert truth_told(read()) == ""


def test_limits_of_all_and_of_one_account():
    truth = read(limits=["0.8", "main:input_tokens_per_minute=400_000,requests_per_minute=50", "main:0.5"])
    assert truth.terms_of("other") == Terms(0.8)
    assert truth.terms_of("main") == Terms(0.5, {"input_tokens": 400_000, "requests": 50})


def test_outages_and_faults():
    truth = read(
        outages=["10m:2m", "90:30s:stall", "eu:main:1.5h:1d:500"], faults=["529=0.02", "main:disconnect=1"], tells=False
    )
    assert truth.outages == (
        Outage(600.0, 120.0),
        Outage(90.0, 30.0, "stall"),
        Outage(5_400.0, 86_400.0, "500", "eu:main"),
    )
    assert truth.faults == (Fault("529", 0.02), Fault("disconnect", 1.0, "main"))
    assert truth_told(truth) == (
        "outage (529) from 600 s for 120 s, outage (stall) from 90 s for 30 s, outage (500) of eu:main from 5400 s for "
        "86400 s, 2 % of calls fail (529), 100 % of calls fail (disconnect) of main, no word of limits in answers"
    )


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("limits", "0", "--provider-limits 0: expected a factor from 0.001 to 1000"),
        ("limits", "much", "--provider-limits much: expected a factor"),
        ("limits", "main:nan", "--provider-limits main:nan: expected a factor"),
        ("limits", "slots=3", "'slots=3'; expected one of requests_per_minute, "),
        ("limits", "requests_per_minute=1.5", "a whole number from 1 to 1,000,000,000"),
        ("limits", "requests_per_minute=", "'requests_per_minute='; expected one of"),
        ("outages", "10m", "--outage 10m: expected [ACCOUNT:]FROM:FOR[:KIND] such as 10m:2m"),
        ("outages", "10m:0", "--outage 10m:0: expected"),
        ("outages", "10m:2m:flood", "KIND one of 529, 500, disconnect, stall"),
        ("outages", "-1m:2m", "--outage -1m:2m: expected"),
        ("outages", "0:400d", "up to 366 days"),
        ("faults", "529", "--fault 529: expected [ACCOUNT:]KIND=SHARE such as 529=0.02"),
        ("faults", "418=0.5", "KIND is one of 529, 500, disconnect, stall"),
        ("faults", "529=1.5", "SHARE a part from 0 to 1"),
    ],
)
def test_what_cannot_be_is_told(option, text, told):
    with pytest.raises(CallerError) as error:
        read(**{option: [text]})
    assert told in str(error.value)
    assert text in str(error.value)
