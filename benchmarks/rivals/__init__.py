"""The rivals, each in a process of its own, so that none needs what Headgate needs."""
