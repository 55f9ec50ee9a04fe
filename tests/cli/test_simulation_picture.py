"""Labels in the picture of a simulation fit, and tell limits of one long name apart."""

from headgate.cli.simulation.picture import label_text


def test_limits_of_a_long_name_are_told_apart():
    """Four limits read `account:a-rather-long-account-nam…`."""
    scope = "account:a-rather-long-account-name-of-somebody-in-a-far-away-country-with-more"
    names = [f"{scope} {each}" for each in ("requests/min", "input tokens/min", "dollars/day")]
    labels = [label_text(name) for name in names]
    assert len(set(labels)) == 3
    assert all(len(line) <= 34 for label in labels for line in label.split("\n"))
    assert all(label.count("\n") <= 1 for label in labels)
    assert label_text("account:main requests/min") == "account:main requests/min"
